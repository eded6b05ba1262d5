"""Which runs ``benchmarks/recipes.py`` makes, and which tuned values each of them takes.

Core recipes run on every corpus; the others, which ask what each part of a recipe is worth, on fewer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.recipe_corpora import BUILT_IN, CHARACTERS, CHINESE, ENGLISH, SETTINGS, Cell, cell
from benchmarks.recipe_run import Spec, with_values
from benchmarks.recipe_trees import RECIPES, Values, recipe_named
from ract.errors import BadInput

SEEDS = (0, 1, 2)
TUNING_SEED = 100
CORPORA = (*ENGLISH[:4], CHARACTERS, CHINESE)
CORE = {
    "compute": ("single", "best-single", "stack", "best-stack"),
    "data": ("single", "best-single", "child-alone", "ensemble", "ensemble-distil"),
}
# Where the other recipes run too, and where and at which budgets runs are made anew for a curve.
EXTENDED = {"compute": (ENGLISH[0],), "data": (ENGLISH[0],)}
CURVED = (ENGLISH[0], CHINESE)
CURVE = {
    "compute": (("single", 0.5), ("single", 2.0), ("stack", 0.5), ("stack", 0.6), ("stack", 2.0)),
    "data": (("child-alone", 0.25), ("child-alone", 0.5), ("ensemble-distil", 0.5), ("ensemble-distil", 2.0)),
}
SIDE_BY_SIDE = {"compute": ("ensemble",), "data": ()}  # what gains from workers, where a curve tells the time it saves
QUICK = {
    "compute": ("single", "stack"),
    "data": ("single", "child-alone", "ensemble-distil"),
}
# The built-in corpus is not tuned: what would overfit is regularised, and single models spend less of the budget too.
_REGULAR = Values(dropout=0.1, weight_decay=0.5)
QUICK_VALUES = {
    ("data", "single"): replace(_REGULAR, share=0.25),
    ("data", "child-alone"): replace(_REGULAR, share=0.25),
}
LEAD = {"compute": "best-stack", "data": "ensemble-distil"}


@dataclass(frozen=True)
class Search:
    """One search of the tuning stage: *side*'s values on the valid text of one corpus, coordinate by coordinate."""

    cell: Cell
    side: str
    grid: tuple[tuple[str, tuple[Any, ...]], ...]
    start: Values = field(default_factory=Values)

    @property
    def key(self) -> str:
        """``corpus/setting/side``."""
        return f"{self.cell.name}/{self.side}"

    @property
    def recipe(self) -> str:
        """The recipe that is tried: of ours the one that leads in the setting."""
        return LEAD[self.cell.setting.name] if self.side == "ours" else self.side

    def trial(self, values: Values) -> Spec:
        """The run that tries *values*."""
        return Spec(self.cell, self.recipe, TUNING_SEED, values, trial=True)


# What keeps from overfitting comes before the number of passes: more of the one allows more of the other.
_GRID = {
    "compute": (("lr", (3e-3, 6e-3, 1.2e-2)), ("weight_decay", (0.1, 0.3))),
    "data": (
        ("dropout", (0.0, 0.1, 0.25)),
        ("weight_decay", (0.1, 0.5, 2.0)),
        ("lr", (1.5e-3, 3e-3, 6e-3)),
    ),
}
_PASSES = ("share", (0.5, 0.25, 0.125, 1.0))
_EMA, _MOMENT = ("ema", (0.0, 0.98)), ("grow_at", (0.35, 0.55))
# The first lap of data ended at the edge of its learning rates, with a regularisation that suits lower ones only.
# Together they go much further: pilots with one leaf led to where the second lap begins, on all sides.
_BEYOND = {"lr": 4e-2, "weight_decay": 2.0, "dropout": 0.1}
_AGAIN = (("lr", (4e-2, 2.5e-2, 1.6e-2, 6e-3)), ("weight_decay", (2.0, 0.5, 4.0)), ("dropout", (0.1, 0.0, 0.25)))
_SECOND_LAP = {
    "single": (*_AGAIN, ("share", (0.25, 0.5, 0.125, 1.0)), ("ema", (0.98, 0.95, 0.9, 0.0))),
    "ours": (
        ("student_weight_decay", (0.5, 0.1, "")),
        *_AGAIN,
        ("student_dropout", ("", 0.0)),
        ("members", (4, 3, 6)),
        ("split", (0.65, 0.5, 0.75)),
        ("ema", (0.98, 0.95)),
    ),
}
# Compute: a search that began with the size ended at the smallest, and its rate was chosen before its moment and
# averaging. The second lap offers a smaller one and a higher rate, and asks for each of them again.
_SMALLER, _RATES = "2x64", ("lr", (3e-3, 6e-3, 1.2e-2, 2.4e-2))
_MOMENTS = ("grow_at", (0.35, 0.55, 0.75))


def searches(corpora: Sequence[str], scale: float) -> Iterator[Search]:
    """The searches for the classes of *corpora*: both controls and ours with the same grid, in each setting.

    Both sides choose their final size where the control may. On little text, single models choose how much of the
    budget they spend (their epochs), an ensemble how many members of which shape share it; with much text, a stack
    chooses its moment, and an ensemble, which has a leaf for each of four workers, their shape.
    """
    for setting in SETTINGS:
        for corpus in dict.fromkeys(cell(name, setting).tuned_on for name in corpora):
            place, grid = cell(corpus, setting, scale), _GRID[setting]
            sizes = ("size", place.setting.sizes)
            if setting == "data":
                half = Values(share=_PASSES[1][0])
                yield Search(place, "single", (*grid, _PASSES, _EMA), half)
                yield Search(place, "best-single", (sizes, *grid, _PASSES, _EMA), half)
                yield Search(place, "child-alone", (*grid, _PASSES, _EMA), Values(share=0.25))
                own = (("leaf", place.setting.sizes[:2]), ("members", (4, 2, 6, 8)))
                yield Search(place, "ours", (*own, *grid, _EMA, ("split", (0.5, 0.4, 0.65))))
            else:
                yield Search(place, "single", (*grid, _EMA))
                yield Search(place, "best-single", (sizes, *grid, _EMA))
                yield Search(place, "stack", (_MOMENT, *grid, _EMA))
                yield Search(place, "ensemble", (("leaf", (place.setting.leaf, "2x96", _SMALLER)), *grid, _EMA))
                yield Search(place, "ours", (sizes, _MOMENT, *grid, _EMA))


def second_lap(search: Search, known: Mapping[str, Any]) -> Search:
    """*search*, gone on with from what its first lap found (*known*, its record)."""
    known_values = values_from(known["values"])
    if search.cell.setting.name == "compute":
        moments = (_MOMENTS,) if search.side in ("stack", "ours") else ()
        sizes = (("size", (known_values.size, _SMALLER)),) if known_values.size else ()
        return replace(search, grid=(*sizes, *moments, _RATES, _EMA), start=known_values)
    start = replace(known_values, ema=known_values.ema or 0.9, **_BEYOND)
    if search.side == "ours":
        return replace(search, grid=_SECOND_LAP["ours"], start=replace(start, student_weight_decay=0.5))
    return replace(search, grid=_SECOND_LAP["single"], start=start)


def had_second_lap(known: Mapping[str, Any]) -> bool:
    """Whether the record *known* of a search has its second lap already."""
    return max(_RATES[1] if known["setting"] == "compute" else _AGAIN[0][1]) in known["grid"].get("lr", ())


def matrix(corpora: Sequence[str], seeds: Sequence[int], scale: float) -> Iterator[Spec]:
    """Every run, the first seed of all of them before the second of any."""
    for seed in seeds:
        for setting in SETTINGS:
            for corpus in corpora:
                place = cell(corpus, setting, scale)
                core = QUICK[setting] if corpus == BUILT_IN else CORE[setting]
                extended = corpus in EXTENDED[setting]
                more = [name for name, one in RECIPES.items() if extended and setting in one.settings]
                more += SIDE_BY_SIDE[setting] if corpus in CURVED else ()
                for name in dict.fromkeys([*core, *more]):
                    yield Spec(place, name, seed)
                if corpus in CURVED:
                    for name, fraction in CURVE[setting]:
                        yield Spec(place, name, seed, fraction=fraction)


def chosen(specs: Sequence[Spec], patterns: Sequence[str], scale: float) -> list[Spec]:
    """The *specs* that a pattern ``corpus/setting/recipe/seed`` (or its beginning) matches.

    A pattern without wildcards that matches none names a run outside the matrix. Raises BadInput where it is none.
    """
    if not patterns:
        return list(specs)
    found: dict[str, Spec] = {}
    for pattern in patterns:
        matched = [one for one in specs if fnmatchcase(one.name, pattern) or fnmatchcase(one.name, f"{pattern}/*")]
        if not matched:
            matched = [spec_named(pattern, scale)]
        found |= {one.name: one for one in matched}
    return list(found.values())


def spec_named(name: str, scale: float) -> Spec:
    """The run called *name*. Raises BadInput where the name is not one."""
    parts = name.split("/")
    if len(parts) != 4 or not parts[3].isdigit():
        raise BadInput(f'"{name}" matches no run', "Write corpus/setting/recipe/seed; --list shows the runs")
    recipe, _, fraction = parts[2].partition("@")
    recipe_named(recipe)
    return Spec(cell(parts[0], parts[1], scale), recipe, int(parts[3]), fraction=float(fraction or 1))


def tuned(spec: Spec, tuning: Mapping[str, Any]) -> Spec:
    """*spec* with the values that were found for it; those of the first English corpus where its own class has none."""
    setting = spec.cell.setting.name
    side = spec.recipe if spec.recipe in ("single", "best-single", "child-alone") else "ours"
    if spec.recipe.startswith("single-"):
        side = "best-single"
    elif f"{spec.cell.tuned_on}/{setting}/{spec.recipe}" in tuning:
        side = spec.recipe
    own, other = (f"{corpus}/{setting}/{side}" for corpus in (spec.cell.tuned_on, ENGLISH[0]))
    if own not in tuning and spec.cell.corpus == BUILT_IN:
        return with_values(spec, QUICK_VALUES.get((setting, spec.recipe), Values()))
    key = own if own in tuning else other
    if key not in tuning:
        return spec
    values = values_from(tuning[key]["values"])
    if spec.recipe == "best-single":
        values = _best_of_any_size(spec.cell, tuning, key)
    if spec.recipe == "child-alone":  # the leaf that our side has chosen, alone
        ours = tuning.get(own.replace(side, "ours"), tuning.get(other.replace(side, "ours")))
        values = replace(values, leaf=ours["values"].get("leaf", "") if ours else "")
    return with_values(spec, values)


def at_larger_scale(tuning: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """*tuning* of a larger scale, with the searches of scale 1 (*base*) for the sides that none was made for."""
    searched = {key.partition("/")[2] for key in tuning}
    return {key: one for key, one in base.items() if key.partition("/")[2] not in searched} | dict(tuning)


def _best_of_any_size(place: Cell, tuning: Mapping[str, Any], key: str) -> Values:
    """The values of the single model that was best on valid, be it in the search (*key*) for its size or in another.

    A search that chooses a size before all else may take one that another, searched by itself, then leaves behind.
    """
    searched = {"best-single": "", "single": place.setting.final, "child-alone": place.setting.leaf}
    found = {size: tuning.get(key.replace("best-single", side)) for side, size in searched.items()}
    reached = {size: _reached(record) for size, record in found.items() if record is not None}
    best = min(reached, key=lambda size: (reached[size], size != ""))
    values = values_from(found[best]["values"])
    return replace(values, size=best) if best else values


def _reached(record: Mapping[str, Any]) -> float:
    losses = (trial["valid_nats_per_token"] for trial in record.get("trials", ()))
    return min((loss for loss in losses if loss is not None), default=math.inf)


def values_from(record: Mapping[str, Any]) -> Values:
    """Values as they were written to JSON."""
    return Values(**{one.name: record[one.name] for one in fields(Values) if one.name in record})


def read_tuning(work: Path, published: Path) -> dict[str, Any]:
    """What was tuned: in *work*, else as *published* with the results; nothing where neither is there."""
    own = work / "tuning.json"
    return json.loads(own.read_text(encoding="utf-8")) if own.is_file() else published_tuning(published)


def published_tuning(file: Path) -> dict[str, Any]:
    """What was tuned for the results in *file*; nothing where there are none."""
    return json.loads(file.read_text(encoding="utf-8")).get("tuning", {}) if file.is_file() else {}
