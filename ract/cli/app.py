"""The Typer application and the options that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ract import __version__

app = typer.Typer(
    name="ract",
    help="ReAct: Recursive Aggregation of Compact Transformers. "
    "Train small language models, aggregate them, run them on a CPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="The model directory to write.")]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file (TOML).")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(f"ract {__version__}")
        raise typer.Exit


def print_json(value: Any) -> None:
    """*value* on standard output, for machines."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, allow_nan=True)
    print()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[str] = ()) -> None:
    """A plain table on standard output; columns named in *left* are left-aligned, the others right-aligned.

    Drawn without a terminal's width in mind when the output is a file, so that nothing is cut there.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=column not in left)
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)
