"""The saving against size, text and workers, fitted to the runs there are, and what a check at a larger size takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.recipe_corpora import cell
from benchmarks.recipe_results import INTERVAL, RESAMPLES, Array
from benchmarks.recipe_texts import WORDS
from ract.plan.quantities import show_count

Results = Mapping[str, Any]
Points = list[tuple[float, float]]

# A stack shows what growth saves at a given size; side by side, leaves show what workers save.
_GROWN, _ALONE = "stack", "single"
_SIDE_BY_SIDE = {"compute": "ensemble", "data": "ensemble-distil"}
# A check: both recipes with three seeds, at the fewest tokens a parameter that `ract init` gives a model.
_CHECKED = (1e8, 1e9, 1e10)
_RUNS, _TOKENS_A_PARAMETER = 2 * 3, 4
_GPU_FLOPS_PER_SECOND = 4e14  # 40% of what the maker of an H100 gives for bf16


def scaling_points(sets: Sequence[Results]) -> dict[str, Points]:
    """By what a saving may depend on: (x, saving) of every cell and set that tells it.

    For parameters and tokens the saving is the share by which the test loss of a stack is below that of the single
    model of the same size and FLOPs; for workers, no more than there are leaves, the share of the time of one worker.
    """
    points: dict[str, Points] = {"parameters": [], "tokens a parameter": []}
    for found in sets:
        for one in found["cells"].values():
            for fraction, parameters, saving in _grown(one):
                if fraction == 1:
                    points["parameters"].append((parameters, saving))
                if found["scale"] == 1:
                    tokens = cell(one["corpus"], one["setting"]).setting.final_tokens * fraction
                    points["tokens a parameter"].append((tokens / parameters, saving))
            shared = _SIDE_BY_SIDE[one["setting"]]
            points.setdefault(f"workers, {shared}", []).extend(_side_by_side(one["recipes"].get(shared)))
    return points


def _grown(one: Results) -> Iterator[tuple[float, float, float]]:
    """Of each budget at which growth has a single model beside it: its fraction, the parameters, what is saved."""
    recipes = one["recipes"] if one["setting"] == "compute" else {}
    for label, grown in recipes.items():
        recipe, at, budget = label.partition("@")
        alone = recipes.get(f"{_ALONE}{at}{budget}")
        if recipe == _GROWN and alone is not None:
            yield grown["fraction"], alone["parameters"], 1 - grown["test"]["mean"] / alone["test"]["mean"]


def _side_by_side(leaves: Results | None) -> Points:
    if leaves is None or "critical_seconds" not in leaves:
        return []
    seconds, most = leaves["critical_seconds"], leaves["values"]["members"]
    return [(float(workers), 1 - each / seconds["1"]) for workers, each in seconds.items() if int(workers) <= most]


def _amdahl(x: Array) -> Array:
    return 1 - 1 / x


@dataclass(frozen=True)
class Fit:
    """``a + b f(x)`` by least squares, and the *lines* of resampled points: shape (resamples, 2), each a slope and an
    intercept. *f* is ln, or 1 − 1/x with ``a = 0``, where *b* is the share of the work that can be shared (Amdahl)."""

    a: float
    b: float
    lines: Array
    f: Callable[[Array], Array] = np.log

    def at(self, x: Array) -> Array:
        """The curve at *x*."""
        return self.a + self.b * self.f(x)

    @property
    def interval(self) -> tuple[float, float]:
        """Of *b*, 95%."""
        low, high = _quantiles(self.lines[:, 0])
        return float(low), float(high)

    def band(self, x: Array) -> Array:
        """Lower and upper end of the 95% interval of the curve at *x*: shape (2, len(x))."""
        return _quantiles(self.lines[:, :1] * self.f(x) + self.lines[:, 1:])


def _quantiles(values: Array) -> Array:
    return np.quantile(values, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], axis=0)


def fit(points: Sequence[tuple[float, float]], *, workers: bool = False, seed: int = 0) -> Fit | None:
    """``a + b ln x``, of *workers* ``b (1 − 1/x)``, with its uncertainty from 2,000 resamples of the *points*.

    None for fewer than three different x, or where they span less than a factor of four: nothing can be told then.
    """
    if len({x for x, _ in points}) < 3 or max(points)[0] / min(points)[0] < 4:
        return None
    f = _amdahl if workers else np.log
    x, y = f(np.array([x for x, _ in points])), np.array([y for _, y in points])
    drawn = np.random.default_rng(seed).integers(len(x), size=(RESAMPLES, len(x)))
    drawn = drawn[np.ptp(x[drawn], axis=1) > 0]  # one x alone has no slope
    line, lines = _lines(x[None], y[None], workers)[0], _lines(x[drawn], y[drawn], workers)
    return Fit(float(line[1]), float(line[0]), lines, f)


def _lines(x: Array, y: Array, through_zero: bool) -> Array:
    """Slope and intercept of each row of points: shape (rows, 2)."""
    middle = np.zeros((len(x), 1)) if through_zero else x.mean(axis=1, keepdims=True)
    slopes = ((x - middle) * y).sum(axis=1) / ((x - middle) ** 2).sum(axis=1)
    intercepts = np.zeros(len(x)) if through_zero else y.mean(axis=1) - slopes * middle[:, 0]
    return np.stack([slopes, intercepts], axis=1)


def fits(sets: Sequence[Results]) -> dict[str, tuple[Points, Fit]]:
    """Every fit that the points of *sets* allow."""
    known = {name: (points, fit(points, workers=is_time(name))) for name, points in scaling_points(sets).items()}
    return {name: (points, found) for name, (points, found) in known.items() if found is not None}


def is_time(name: str) -> bool:
    """Whether what is saved under *name* is time, which workers save, and not loss."""
    return name.startswith("workers")


def scaling_rows(sets: Sequence[Results], language: str) -> list[list[str]]:
    """What depends on what: a line of the table for each fit."""
    rows = []
    for name, (points, found) in fits(sets).items():
        span = f"{show_count(min(points)[0])}–{show_count(max(points)[0])}"
        low, high = found.interval
        what = WORDS[f"scaling, {name}"][language]
        curve = f"{found.b:.3f} (1 − 1/x)" if is_time(name) else f"{found.a:.3f} {found.b:+.4f} ln x"
        rows.append([what, span, str(len(points)), curve, f"[{low:+.4f}, {high:+.4f}]"])
    return rows


def check_rows() -> list[list[str]]:
    """What a check at larger sizes takes: parameters, tokens a run, FLOPs of all runs, hours on one GPU."""
    rows = []
    for parameters in _CHECKED:
        tokens = _TOKENS_A_PARAMETER * parameters
        flops = _RUNS * 6 * parameters * tokens
        hours = flops / _GPU_FLOPS_PER_SECOND / 3600
        rows.append([show_count(parameters), show_count(tokens), f"{flops:.2e}", f"{hours:,.0f}"])
    return rows
