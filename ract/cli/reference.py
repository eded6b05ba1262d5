"""Write the reference pages from the code: every command, every key of a plan. ``python -m ract.cli.reference docs``.

``--check`` compares instead, and fails where a page is not what the code says.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_NOTE = "<!-- Written by `make docs` from the code: change the code, not this page. -->\n\n"


def command_page() -> str:
    """Every command with its arguments and options, as Markdown."""
    from ract.cli import app

    group: Any = typer.main.get_command(app)
    parts = ["# Commands\n\n", _NOTE, f"{group.help}\n\n"]
    parts += [
        "Results go to standard output, progress and errors to standard error. Exit code 0: success, 1: failure, "
        "2: bad input. Nothing is overwritten without `--force`.\n\n"
    ]
    for name, command in group.commands.items():
        parts.append(f"## ract {name}\n\n{command.help}\n\n")
        context = command.context_class(command, info_name=f"ract {name}", max_content_width=100)
        parts.append(f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n\n")
        rows = [row for p in command.params if (row := p.get_help_record(context)) is not None]
        parts.append("| | |\n|---|---|\n" + "".join(f"| `{_cell(a)}` | {_cell(b)} |\n" for a, b in rows) + "\n")
    return "".join(parts).rstrip() + "\n"


def plan_page() -> str:
    """Every table and key of a plan file, with its type and default, as Markdown."""
    from ract.plan import schema
    from ract.plan import tables as shared
    from ract.plan.defaults import FINAL_DECAY, TRAIN_DEFAULTS

    defaults: dict[str, Any] = {**TRAIN_DEFAULTS, "decay": f"{FINAL_DECAY} at the end of a chain, else 0"}
    tables: list[tuple[str, type[shared.Table]]] = [
        ("(top of the file)", schema.Plan),
        ("[data]", shared.DataTable),
        ("[data.domains.NAME]", shared.DomainTable),
        ("[tokenizer]", shared.TokenizerTable),
        ("[compact]", schema.CompactTable),
        ("[train], and train, pretrain, branch, heal and student", shared.TrainTable),
        ("train, pretrain, branch, heal, student = { … }", shared.StageTable),
        ("branch = { … }", shared.BranchTable),
        ("heal = { … }", shared.HealTable),
        ("student = { … }", shared.StudentTable),
        ("[[level]]", schema.LevelTable),
        ("[tree]", schema.TreeTable),
        ("[budget]", schema.BudgetTable),
        ("[baseline]", schema.BaselineTable),
    ]
    parts = ["# The plan file\n\n", _NOTE]
    parts.append('Counts may be written `"2M"`, sizes `"20MB"`. An unknown key is an error. ')
    parts.append("Defaults of training are those of language modelling; `ract check` shows what a plan comes to.\n\n")
    for title, table in tables:
        doc = " ".join((table.__doc__ or "").replace("``", "`").split())
        parts.append(f"## {title}\n\n{doc}\n\n| key | type | default | |\n|---|---|---|---|\n")
        above = table.__mro__[1]
        inherited = above.model_fields if issubclass(above, shared.Table) else {}
        for name, field in table.model_fields.items():
            key = field.alias or name
            if name not in inherited or field.default != inherited[name].default:
                default = _default(field) if key not in defaults or "Train" not in table.__name__ else defaults[key]
                parts.append(
                    f"| `{key}` | {_type(field.annotation)} | {_cell(default)} | {_cell(field.description or '')} |\n"
                )
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value is PydanticUndefined or isinstance(value, BaseModel) or value in ([], {}):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _type(annotation: Any) -> str:
    arguments = get_args(annotation)
    if not arguments:
        return {"Path": "path", "str": "text", "int": "number", "float": "number", "bool": "true or false"}.get(
            getattr(annotation, "__name__", ""), "table"
        )
    origin = str(annotation)
    if origin.startswith("typing.Literal"):
        return " or ".join(f"`{a}`" for a in arguments)
    if origin.startswith("typing.Annotated"):
        return _type(arguments[0])
    if origin.startswith("list"):
        return f"list of {_type(arguments[0])}s"
    if origin.startswith("dict"):
        return "table of lists"
    kinds = [_type(a) for a in arguments if a is not type(None)]
    return " or ".join(dict.fromkeys(kinds))


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def main(arguments: list[str]) -> int:
    """Write (or with ``--check`` compare) the pages in the folder given."""
    folder = Path(arguments[-1])
    pages = {"cli.md": command_page(), "plan.md": plan_page()}
    stale = [n for n, text in pages.items() if not (folder / n).is_file() or (folder / n).read_text("utf-8") != text]
    if "--check" in arguments:
        for name in stale:
            print(f"{folder / name} is not what the code says: run make docs", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (folder / name).write_text(pages[name], encoding="utf-8")
        print(f"wrote {folder / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
