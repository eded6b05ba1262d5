"""``docs/recipes.md`` and its Chinese twin, from the JSON files of ``benchmarks/recipes.py`` and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from benchmarks.recipe_corpora import BUILT_IN
from benchmarks.recipe_records import processor_seconds
from benchmarks.recipe_scaling import check_rows, scaling_rows
from benchmarks.recipe_texts import HEAD, NANOGPT_CHINESE, WHEN, WORDS
from benchmarks.recipe_trees import Recipe, recipe_named
from ract.checkpoint.directory import write_text
from ract.errors import BadInput
from ract.plan.quantities import show_count, show_time

PAGES = {"en": "recipes.md", "zh": "recipes.zh-CN.md"}
# What control 1 (a single model of the recipe's own final size) and control 2 (the best of any size) ask of ours:
# the relative difference of the test loss, by setting.
TARGETS = {"compute": (-0.03, 0.0), "data": (-0.04, -0.02)}
_DEPTHS = (
    ("compute", ("single", "stack", "two-hops", "three-hops")),
    ("compute", ("merge", "merge-stack")),
    ("data", ("ensemble", "ensemble-distil", "students", "distil-twice")),
)
Results = Mapping[str, Any]


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

    parts = [HEAD[language], WHEN[language]]
    for found in sets:
        heading = f" ({WORDS['scale'][language].format(scale=found['scale'])})" if len(sets) > 1 else ""
        parts.append(tables(found, language, heading))
    figures = [_picture(name) for name in figure_names(sets) if name != SCALING]
    parts += [f"{WORDS['figures_text'][language]}\n", *figures] if figures else []
    parts += [_scaling(sets, language), _nanogpt(nanogpt, language) if nanogpt else ""]
    return "\n".join(part for part in parts if part)


def tables(found: Results, language: str, heading: str = "") -> str:
    """All tables of one set of results as Markdown."""
    sections = [_short(found, language, heading)]
    for setting in ("compute", "data"):
        cells = {name: one for name, one in found["cells"].items() if one["setting"] == setting}
        if cells:
            sections.append(f"## {WORDS[setting][language]}{heading}\n")
            sections += [_cell(name, one, language, found["scale"]) for name, one in cells.items()]
    sections += [make(found, language, heading) for make in (_depth, _kept, _same, _tuning)]
    return "\n".join(section for section in sections if section)


def beside_published(records: Sequence[Results], before: Mapping[str, Results]) -> str:
    """What runs reached that were made again (their *records*), beside what is published (*before*, by name)."""
    rows = []
    for record in records:
        here = record["losses"]["final"]["test"]["nats_per_token"]
        seconds = show_time(processor_seconds(record))
        row = [record["name"], f"{here:.4f}", "–", "–", record["device"], "–", seconds]
        known = before.get(record["name"])
        if known is not None and known["plan"] == record["plan"]:
            there = known["losses"]["final"]["test"]["nats_per_token"]
            row[2:6] = [f"{there:.4f}", f"{here / there - 1:+.2%}", record["device"], known["device"]]
        rows.append(row)
    return _table(["run", "test", "published", "difference", "device", "published on", "one worker"], rows)


def _short(found: Results, language: str, heading: str) -> str:
    rows = []
    for name, one in found["cells"].items():
        ours = {r: v for r, v in one["recipes"].items() if "@" not in r and recipe_named(r).ours}
        if not ours:
            continue
        size = one["recipes"]["single"]["parameters"] if "single" in one["recipes"] else 0
        given = {r: v for r, v in ours.items() if math.isclose(v["parameters"], size, rel_tol=0.01)}
        shown = [min(some, key=lambda r, some=some: some[r]["valid"]["mean"]) for some in (ours, given) if some]
        for best in dict.fromkeys(shown):
            first = control_one(one["recipes"], best)
            row = [name, best]
            for control, target in zip((first, "best-single"), TARGETS[one["setting"]], strict=True):
                against = ours[best]["against"].get(control)
                row += [control, _difference(against), _verdict(against, target, language)]
            rows.append(row)
    head = ["cell", "ours", "control 1", "against it", "target", "control 2", "against it", "target"]
    return _section("short", "short_text", _table(head, rows), language, heading) if rows else ""


def control_one(recipes: Mapping[str, Results], name: str) -> str:
    """Control 1 of the recipe *name*: the single model nearest to its final size, whose inference costs the same."""
    sizes = {one: recipes[one]["parameters"] for one in ("single", "child-alone", "best-single") if one in recipes}
    return min(sizes, key=lambda one: abs(math.log(sizes[one] / recipes[name]["parameters"])), default="single")


def _verdict(against: Results | None, target: float, language: str) -> str:
    if against is None:
        return "–"
    met = against["difference"] <= target
    words = WORDS["met" if met else "missed"][language]
    if against["low"] <= target <= against["high"]:
        words += f" ({WORDS['unsure'][language]})"
    return f"≤ {target:+.0%}: {words}"


def _cell(name: str, one: Results, language: str, scale: float) -> str:
    devices = sorted({run["device"] for values in one["recipes"].values() for run in values["runs"]})
    text = WORDS["cell"][language].format(
        name=name, budget=show_count(one["budget"]), tokens=show_count(one["train_tokens"]), devices=", ".join(devices)
    )
    rows = []
    for recipe, values in one["recipes"].items():
        known = recipe_named(recipe.partition("@")[0])
        what = known.english if language == "en" else known.chinese
        rows.append(
            [
                recipe,
                f"{what} ({_side(known, language)})" if _side(known, language) else what,
                f"{values['parameters'] / 1e6:.2f} M",
                _mean(values["test"]),
                f"{values['test_bits_per_byte']['mean']:.3f}",
                _seeds(values),
                *(_difference(values["against"].get(control)) for control in ("single", "best-single", "child-alone")),
                show_count(values["flops"]),
                *(_time(values, workers) for workers in ("1", "4")),
                f"`{_command(name, recipe, values, scale)}`",
            ]
        )
    head = ["recipe", "what", "parameters", "test", "bits a byte", "seeds", "against single", "against best-single"]
    head += ["against child-alone", "FLOPs", "one worker", "four workers", "command"]
    return f"{text}\n\n{_table(head, rows)}"


def _command(cell: str, recipe: str, values: Results, scale: float) -> str:
    data = "" if cell.startswith(BUILT_IN) else " --data DATA"
    more = "" if scale == 1 else f" --scale {scale:g}"
    seeds = [str(run["seed"]) for run in values["runs"]]
    listed = seeds[0] if len(seeds) == 1 else f"{{{','.join(seeds)}}}"
    return f"python -m benchmarks.recipes{data}{more} --anew --only {cell}/{recipe}/{listed}"


def _depth(found: Results, language: str, heading: str) -> str:
    rows = []
    for name, one in found["cells"].items():
        for setting, names in _DEPTHS:
            known = [recipe for recipe in names if recipe in one["recipes"]]
            if setting != one["setting"] or len(known) < 2:
                continue
            first = one["recipes"][known[0]]["test"]["mean"]
            for recipe in known:
                values = one["recipes"][recipe]
                change = values["test"]["mean"] / first - 1
                parameters = f"{values['parameters'] / 1e6:.2f} M"
                rows.append([name, recipe, parameters, _mean(values["test"]), f"{change:+.1%}", _seeds(values)])
    head = ["cell", "recipe", "parameters", "test", "relative", "seeds"]
    return _section("depth", "depth_text", _table(head, rows), language, heading) if rows else ""


def _kept(found: Results, language: str, heading: str) -> str:
    rows = [
        [
            name,
            recipe,
            f"{values['leaf_test']:.3f}",
            f"{values['teacher_test']:.3f}",
            _mean(values["test"]),
            f"{values['gain_kept']:.0%}",
            f"{values['gain_kept_over_child_alone']:.0%}" if "gain_kept_over_child_alone" in values else "–",
            _seeds(values),
        ]
        for name, one in found["cells"].items()
        for recipe, values in one["recipes"].items()
        if "gain_kept" in values
    ]
    head = ["cell", "recipe", "leaf", "ensemble", "student", "kept over leaf", "kept over child alone", "seeds"]
    return _section("kept", "kept_text", _table(head, rows), language, heading) if rows else ""


def _same(found: Results, language: str, heading: str) -> str:
    rows = []
    for name, one in found["cells"].items():
        for recipe, values in one["recipes"].items():
            if "flops_share" not in values or recipe.partition("@")[0].startswith("single"):
                continue
            shares = values.get("time_share")
            times = [f"{shares[workers]:.0%}" if shares else "–" for workers in ("1", "2", "4", "8")]
            rows.append([name, recipe, f"{values['flops_share']:.0%}", *times, _seeds(values)])
    head = ["cell", "recipe", "FLOPs", "time, 1 worker", "2", "4", "8", "seeds"]
    return _section("same", "same_text", _table(head, rows), language, heading) if rows else ""


def _tuning(found: Results, language: str, heading: str) -> str:
    rows = []
    for name, one in found["tuning"].items():
        grid = "; ".join(f"{key} {', '.join(map(str, options))}" for key, options in one["grid"].items())
        searched = [key for key in one["values"] if key in one["grid"]]
        values = ", ".join(f"{key} {one['values'][key]}" for key in searched)
        rows.append([name, one["recipe"], grid, str(len(one["trials"])), show_count(one["flops"]), values])
    head = ["search", "recipe", "grid", "trials", "FLOPs", "chosen"]
    return _section("tuning", "tuning_text", _table(head, rows), language, heading) if rows else ""


def _scaling(sets: Sequence[Results], language: str) -> str:
    from benchmarks.recipe_figures import SCALING

    rows = scaling_rows(sets, language)
    if not rows:
        return ""
    table = _table(["x", "from–to", "points", "saving", "95% of the factor"], rows)
    table += f"\n{_picture(SCALING)}"
    check = _table(["parameters", "tokens a run", "FLOPs of six runs", "GPU hours"], check_rows())
    return f"{_section('scaling', 'scaling_text', table, language, '')}\n{WORDS['check_text'][language]}\n\n{check}"


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
    return _section("nanogpt", "nanogpt_text", _table(head, rows), language, "")


def _translated(name: str, language: str) -> str:
    """The *name* of a row beside nanoGPT in *language*; a number of models before it stays as it is."""
    number = name[: len(name) - len(name.lstrip("0123456789 "))]
    return number + NANOGPT_CHINESE[name.removeprefix(number)] if language == "zh" else name


def _section(title: str, text: str, table: str, language: str, heading: str) -> str:
    return f"## {WORDS[title][language]}{heading}\n\n{WORDS[text][language]}\n\n{table}"


def _picture(name: str) -> str:
    return f"![{name}](figures/{name}.svg)\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _mean(value: Results) -> str:
    return f"{value['mean']:.4f}" + (f" ± {value['spread']:.4f}" if value["spread"] is not None else "")


def _seeds(values: Results) -> str:
    return ", ".join(str(run["seed"]) for run in values["runs"])


def _time(values: Results, workers: str) -> str:
    return show_time(values["critical_seconds"][workers]) if "critical_seconds" in values else "–"


def _difference(against: Results | None) -> str:
    if against is None:
        return "–"
    return f"{against['difference']:+.1%} [{against['low']:+.1%}, {against['high']:+.1%}]"


def _side(recipe: Recipe, language: str) -> str:
    numbers = [WORDS["control"][language].format(number=recipe.control)] if recipe.control else []
    return ", ".join([*([WORDS["ours"][language]] if recipe.ours else []), *numbers])
