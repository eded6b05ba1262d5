"""The tables of ``docs/recipes.md`` and its Chinese twin, from the JSON files of ``benchmarks/recipes.py`` alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.recipe_corpora import BUILT_IN
from benchmarks.recipe_records import processor_seconds
from benchmarks.recipe_texts import HEADINGS_CHINESE, WORDS
from benchmarks.recipe_trees import Recipe, recipe_named
from ract.plan.quantities import show_count, show_time

# What control 1 (a single model of the recipe's own final size) and control 2 (the best of any size) ask of ours:
# the relative difference of the test loss, by setting.
TARGETS = {"compute": (-0.03, 0.0), "data": (-0.04, -0.02)}
_DEPTHS = (
    ("compute", ("single", "stack", "two-hops", "three-hops")),
    ("compute", ("merge", "merge-stack")),
    ("data", ("ensemble", "ensemble-distil", "students", "distil-twice")),
)
NOTHING = "–"
Results = Mapping[str, Any]


def tables(found: Results, language: str, heading: str = "") -> str:
    """All tables of one set of results as Markdown, but the short one."""
    sections = []
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
        row = [record["name"], f"{here:.4f}", NOTHING, NOTHING, record["device"], NOTHING, seconds]
        known = before.get(record["name"])
        if known is not None and known["plan"] == record["plan"]:
            there = known["losses"]["final"]["test"]["nats_per_token"]
            row[2:6] = [f"{there:.4f}", f"{here / there - 1:+.2%}", record["device"], known["device"]]
        rows.append(row)
    return table(["run", "test", "published", "difference", "device", "published on", "one worker"], rows)


def short(found: Results, language: str, heading: str = "") -> str:
    """The table that holds our best beside both controls, and what was asked for."""
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
    return section("short", "short_text", table(head, rows, language), language, heading) if rows else ""


def control_one(recipes: Mapping[str, Results], name: str) -> str:
    """Control 1 of the recipe *name*: the single model nearest to its final size, whose inference costs the same."""
    sizes = {one: recipes[one]["parameters"] for one in ("single", "child-alone", "best-single") if one in recipes}
    return min(sizes, key=lambda one: abs(math.log(sizes[one] / recipes[name]["parameters"])), default="single")


def _verdict(against: Results | None, target: float, language: str) -> str:
    if against is None:
        return NOTHING
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
            ]
        )
    head = ["recipe", "what", "parameters", "test", "bits a byte", "seeds", "against single", "against best-single"]
    head += ["against child-alone", "FLOPs", "one worker", "four workers"]
    return f"{text}\n\n{table(head, rows, language)}\n{WORDS['again'][language]} `{_command(name, scale)}`\n"


def _command(cell: str, scale: float) -> str:
    data = "" if cell.startswith(BUILT_IN) else " --data DATA"
    more = "" if scale == 1 else f" --scale {scale:g}"
    return f"python -m benchmarks.recipes{data}{more} --anew --only {cell}/RECIPE/SEED"


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
    return section("depth", "depth_text", table(head, rows, language), language, heading) if rows else ""


def _kept(found: Results, language: str, heading: str) -> str:
    rows = [
        [
            name,
            recipe,
            f"{values['leaf_test']:.3f}",
            f"{values['teacher_test']:.3f}",
            _mean(values["test"]),
            f"{values['gain_kept']:.0%}",
            f"{values['gain_kept_over_child_alone']:.0%}" if "gain_kept_over_child_alone" in values else NOTHING,
            _seeds(values),
        ]
        for name, one in found["cells"].items()
        for recipe, values in one["recipes"].items()
        if "gain_kept" in values
    ]
    head = ["cell", "recipe", "leaf", "ensemble", "student", "kept over leaf", "kept over child alone", "seeds"]
    return section("kept", "kept_text", table(head, rows, language), language, heading) if rows else ""


def _same(found: Results, language: str, heading: str) -> str:
    rows = []
    for name, one in found["cells"].items():
        for recipe, values in one["recipes"].items():
            if "flops_share" not in values or recipe.partition("@")[0].startswith("single"):
                continue
            shares = values.get("time_share")
            times = [f"{shares[workers]:.0%}" if shares else NOTHING for workers in ("1", "2", "4", "8")]
            rows.append([name, recipe, f"{values['flops_share']:.0%}", *times, _seeds(values)])
    head = ["cell", "recipe", "FLOPs", "time, 1 worker", "2", "4", "8", "seeds"]
    return section("same", "same_text", table(head, rows, language), language, heading) if rows else ""


def _tuning(found: Results, language: str, heading: str) -> str:
    rows = []
    for name, one in found["tuning"].items():
        grid = "; ".join(f"{key} {', '.join(map(str, options))}" for key, options in one["grid"].items())
        searched = [key for key in one["values"] if key in one["grid"]]
        values = ", ".join(f"{key} {one['values'][key]}" for key in searched)
        rows.append([name, one["recipe"], grid, str(len(one["trials"])), show_count(one["flops"]), values])
    head = ["search", "recipe", "grid", "trials", "FLOPs", "chosen"]
    return section("tuning", "tuning_text", table(head, rows, language), language, heading) if rows else ""


def section(title: str, text: str, body: str, language: str, heading: str) -> str:
    """A section of the page; *title* and *text* are keys of the words."""
    return f"## {WORDS[title][language]}{heading}\n\n{WORDS[text][language]}\n\n{body}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], language: str = "en") -> str:
    """Markdown, without the columns that say nothing in any row; *head* in English."""
    kept = [number for number in range(len(head)) if not rows or any(row[number] != NOTHING for row in rows)]
    named = [head[number] if language == "en" else HEADINGS_CHINESE.get(head[number], head[number]) for number in kept]
    lines = [named, ["---"] * len(kept), *([row[number] for number in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _mean(value: Results) -> str:
    return f"{value['mean']:.4f}" + (f" ± {value['spread']:.4f}" if value["spread"] is not None else "")


def _seeds(values: Results) -> str:
    return ", ".join(str(run["seed"]) for run in values["runs"])


def _time(values: Results, workers: str) -> str:
    return show_time(values["critical_seconds"][workers]) if "critical_seconds" in values else NOTHING


def _difference(against: Results | None) -> str:
    if against is None:
        return NOTHING
    return f"{against['difference']:+.1%} [{against['low']:+.1%}, {against['high']:+.1%}]"


def _side(recipe: Recipe, language: str) -> str:
    numbers = [WORDS["control"][language].format(number=recipe.control)] if recipe.control else []
    return ", ".join([*([WORDS["ours"][language]] if recipe.ours else []), *numbers])
