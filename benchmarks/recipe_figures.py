"""The plots of ``docs/recipes.md``, from the JSON files of ``benchmarks/recipes.py`` alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.recipe_scaling import Fit, Points, fits, is_time
from benchmarks.recipe_trees import recipe_named
from ract.plan.quantities import show_count
from ract.report.style import COLORS, axes_at, figure_style, new_figure, save

_WIDTH, _LEFT, _RIGHT, _ROW = 8.4, 3.0, 0.2, 0.2  # inches
_NAME_POINTS = 7.0  # from one name to the next
_CONTROLS = ("single", "best-single")
SCALING = "recipes-scaling"
Results = Mapping[str, Any]


def figure_names(sets: Sequence[Results]) -> list[str]:
    """The figures that can be drawn of *sets*: differences by setting and scale, the curves, and the fits."""
    names = []
    for found in sets:
        ending = "" if found["scale"] == 1 else f"-x{found['scale']:g}"
        names += [f"recipes-{s}{ending}" for s in ("compute", "data") if _rows(found, s)]
        names += [f"recipes-curve{ending}"] if _curves(found) else []
    return [*names, SCALING] if fits(sets) else names


def draw(sets: Sequence[Results], folder: Path) -> None:
    """Write them as SVG into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    with figure_style():
        for found in sets:
            ending = "" if found["scale"] == 1 else f"-x{found['scale']:g}"
            for setting in ("compute", "data"):
                if _rows(found, setting):
                    save(_differences(_rows(found, setting)), folder / f"recipes-{setting}{ending}.svg")
            if _curves(found):
                save(_curve_figure(_curves(found)), folder / f"recipes-curve{ending}.svg")
        if found_fits := fits(sets):
            save(_scaling_figure(found_fits), folder / f"{SCALING}.svg")


def _rows(found: Results, setting: str) -> list[tuple[str, bool, Results]]:
    """``(cell and recipe, ours, its record)`` for what has a control to stand against."""
    return [
        (f"{one['corpus']}  {recipe}", recipe_named(recipe).ours, values)
        for one in found["cells"].values()
        if one["setting"] == setting
        for recipe, values in one["recipes"].items()
        if "@" not in recipe and recipe not in _CONTROLS and any(c in values["against"] for c in _CONTROLS)
    ]


def _differences(rows: Sequence[tuple[str, bool, Results]]) -> Figure:
    """Relative difference of the test loss to each control that was run, with its interval, a line for each recipe."""
    height = len(rows) * _ROW
    figure = new_figure(_WIDTH, height + 0.9)
    width = (_WIDTH - _LEFT - _RIGHT - 0.3) / 2
    run = [control for control in _CONTROLS if any(control in values["against"] for _, _, values in rows)]
    for column, control in enumerate(run):
        axes = axes_at(figure, _LEFT + column * (width + 0.3), 0.5, width, height)
        for number, (_, ours, values) in enumerate(rows):
            against = values["against"].get(control)
            if against is None:
                continue
            middle, low, high = (100 * against[key] for key in ("difference", "low", "high"))
            color = COLORS["heal" if ours else "baseline"]
            axes.plot([low, high], [number, number], color=color, linewidth=1.6)
            axes.plot([middle], [number], marker="o" if ours else "s", color=color, markersize=4)
        axes.axvline(0, color=COLORS["muted"], linewidth=0.8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows] if column == 0 else [""] * len(rows))
        axes.set_xlabel(f"test loss against {control}, %")
    return figure


def _curves(found: Results) -> dict[str, Results]:
    return {name: one for name, one in found["cells"].items() if len(one["curve"]) > 1}


def _curve_figure(cells: Mapping[str, Results]) -> Figure:
    """Test loss against FLOPs: the single model's decayed runs as a line, every other recipe as a point."""
    columns = 2
    lines = -(-len(cells) // columns)
    width, height = (_WIDTH - 1.4) / columns, 2.4
    figure = new_figure(_WIDTH, lines * (height + 0.9))
    for number, (name, one) in enumerate(cells.items()):
        row, column = divmod(number, columns)
        bottom = (lines - 1 - row) * (height + 0.9) + 0.5
        axes = axes_at(figure, 0.6 + column * (width + 0.7), bottom, width, height)
        axes.plot(
            [point["flops"] for point in one["curve"]],
            [point["test"] for point in one["curve"]],
            color=COLORS["baseline"],
            marker="s",
            label="single",
        )
        for recipe, values in one["recipes"].items():
            if recipe.partition("@")[0] == "single":
                continue
            ours = recipe_named(recipe.partition("@")[0]).ours
            axes.plot(
                [values["flops"]], [values["test"]["mean"]], color=COLORS["heal" if ours else "branch"], marker="o"
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = [point["flops"] for point in one["curve"]]
        axes.set_xticks(ticks, [show_count(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
        _name_points(axes, one["recipes"])
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("FLOPs")
        axes.set_ylabel("test, nats a token")
    return figure


def _name_points(axes: Axes, recipes: Results) -> None:
    """Names beside the points, on the left of the last ones, moved up where they would lie on each other."""
    points = {
        name: (v["flops"], v["test"]["mean"]) for name, v in recipes.items() if name.partition("@")[0] != "single"
    }
    right, scale = axes.get_xlim()[1], 72 / axes.figure.dpi
    above: dict[bool, float] = {}
    for name, point in sorted(points.items(), key=lambda item: item[1][1]):
        last = point[0] * 1.15 > right
        own = axes.transData.transform(point)[1] * scale
        above[last] = max(own, above.get(last, -math.inf) + _NAME_POINTS)
        axes.annotate(
            name,
            point,
            xytext=(-6 if last else 6, above[last] - own - 2),
            textcoords="offset points",
            horizontalalignment="right" if last else "left",
            fontsize=6,
        )


def _scaling_figure(found: Mapping[str, tuple[Points, Fit]]) -> Figure:
    """What is saved against what it depends on: the runs, the fitted curve and its 95% interval, a panel each."""
    width, height, columns = (_WIDTH - 1.4) / 2, 2.2, 2
    lines = -(-len(found) // columns)
    figure = new_figure(_WIDTH, lines * (height + 0.8))
    for number, (name, (points, fit)) in enumerate(found.items()):
        row, column = divmod(number, columns)
        bottom = (lines - 1 - row) * (height + 0.8) + 0.5
        axes = axes_at(figure, 0.6 + column * (width + 0.7), bottom, width, height)
        x = np.geomspace(min(points)[0], max(points)[0], 50)
        axes.fill_between(x, *(100 * fit.band(x)), color=COLORS["heal"], alpha=0.2, linewidth=0)
        axes.plot(x, 100 * fit.at(x), color=COLORS["heal"])
        axes.plot(*zip(*((at, 100 * saving) for at, saving in points), strict=True), "o", color=COLORS["muted"])
        axes.axhline(0, color=COLORS["muted"], linewidth=0.8)
        axes.set_xscale("log")
        ticks = sorted({at for at, _ in points}) if is_time(name) else np.geomspace(x[0], x[-1], 4)
        axes.set_xticks(ticks, [show_count(float(f"{tick:.2g}")) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(name)
        axes.set_ylabel("time saved, %" if is_time(name) else "test loss lower by, %")
    return figure
