"""``docs/recipes.md`` and its Chinese twin, from the JSON files of ``benchmarks/recipes.py`` and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev

from benchmarks.recipe_scaling import check_rows, scaling_rows
from benchmarks.recipe_tables import Results, section, short, table, tables
from benchmarks.recipe_texts import HEAD, HOW, NANOGPT_CHINESE, WHEN, WORDS
from ract.checkpoint.directory import write_text
from ract.errors import BadInput
from ract.plan.quantities import show_time

PAGES = {"en": "recipes.md", "zh": "recipes.zh-CN.md"}


def write_docs(results: Path, folder: Path) -> None:
    """Write the pages and their figures into *folder*, from ``recipes*.json`` in *results*. Raises BadInput if none."""
    from benchmarks.recipe_figures import draw

    sets = read_sets(results)
    for language, page in PAGES.items():
        write_text(folder / page, page_text(sets, language, nanogpt_of(results)))
    draw(sets, folder / "figures")


def read_sets(folder: Path) -> list[Results]:
    """The results in *folder*, one set for each scale. Raises BadInput where there are none."""
    files = sorted(folder.glob("recipes*.json"))
    if not files:
        raise BadInput(f"{folder} holds no recipes.json", "Run python -m benchmarks.recipes first")
    return sorted((json.loads(f.read_text(encoding="utf-8")) for f in files), key=lambda one: one["scale"])


def nanogpt_of(folder: Path) -> Results | None:
    """The comparison with nanoGPT, where it was made."""
    file = folder / "nanogpt.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def page_text(sets: Sequence[Results], language: str, nanogpt: Results | None = None) -> str:
    """The whole page in *language* ("en" or "zh")."""
    from benchmarks.recipe_figures import SCALING, figure_names

    headings = [""]
    if len(sets) > 1:
        headings = [f" ({WORDS['scale'][language].format(scale=found['scale'])})" for found in sets]
    figures = [_picture(name) for name in figure_names(sets) if name != SCALING]
    parts = [HEAD[language], WHEN[language]]
    parts += [f"{WORDS['figures_text'][language]}\n", *figures] if figures else []
    parts += [short(found, language, heading) for found, heading in zip(sets, headings, strict=True)]
    parts += [_nanogpt(nanogpt, language) if nanogpt else "", _scaling(sets, language), HOW[language]]
    parts += [tables(found, language, heading) for found, heading in zip(sets, headings, strict=True)]
    return "\n".join(part for part in parts if part)


def _scaling(sets: Sequence[Results], language: str) -> str:
    from benchmarks.recipe_figures import SCALING

    rows = scaling_rows(sets, language)
    if not rows:
        return ""
    fitted = table(["x", "from–to", "points", "saving", "95% of the factor"], rows, language)
    fitted += f"\n{_picture(SCALING)}"
    check = table(["parameters", "tokens a run", "FLOPs of six runs", "GPU hours"], check_rows(), language)
    return f"{section('scaling', 'scaling_text', fitted, language, '')}\n{WORDS['check_text'][language]}\n\n{check}"


def _nanogpt(found: Results, language: str) -> str:
    rows = []
    for one in found["rows"]:
        losses = one.get("losses", [])
        spread = f" ± {stdev(losses):.3f}" if len(losses) > 1 else ""
        loss = f"{one['nats_per_character']:.3f}{spread}"
        seeds = str(len(losses) or 1)
        rows.append(
            [
                _translated(one["name"], language),
                f"{one['parameters'] / 1e6:.2f} M",
                loss,
                seeds,
                show_time(one["seconds"]),
            ]
        )
    head = ["what", "parameters", "nats a character", "seeds", "wall clock"]
    body = table(head, rows, language)
    if untimed := found["rows"][-1].get("untimed"):  # only the last row is long enough to be made elsewhere
        body += f"\n{WORDS['untimed'][language].format(count=untimed)}\n"
    return section("nanogpt", "nanogpt_text", body, language, "")


def _translated(name: str, language: str) -> str:
    """The *name* of a row beside nanoGPT in *language*; a number of models before it stays as it is."""
    number = name[: len(name) - len(name.lstrip("0123456789 "))]
    return number + NANOGPT_CHINESE[name.removeprefix(number)] if language == "zh" else name


def _picture(name: str) -> str:
    return f"![{name}](figures/{name}.svg)\n"
