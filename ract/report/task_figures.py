"""Figures of classification and translation: the confusion matrix, and quality by domain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ract.report.schema import Record
from ract.report.style import COLORS, axes_at, new_figure

_CELL_WIDE, _CELL_HIGH, _NARROWEST = 0.87, 0.46, 1.4  # inches: a cell, and the least width of all cells
_PAD, _TITLE, _EDGE = 0.12, 0.34, 0.2  # inches: around names, for the title of an axis, at the outer edges
_MOST = 7.0  # inches that all cells share at most
_MOST_WRITTEN = 20  # numbers in cells of a matrix with more rows could not be read
_SIZE, _SMALLEST = 8.0, 4.0  # points
_CHARACTERS = 28
_SLANT = 40  # degrees, of column names that are wider than their column; upright where they are too close for that


def confusion_figure(record: Record) -> Figure:
    """The final classifier's confusion matrix: rows are true classes, columns what was predicted, shaded by row."""
    counts = np.array(record.confusion, dtype=float)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    names = [one.label for one in record.classes]
    written = [[f"{int(count):,}" for count in row] for row in counts]
    return _matrix(shares, written, names, names, "predicted class", "true class")


def domains_figure(record: Record) -> Figure:
    """The metric of every model that does the task, and of the references, by domain; each column shaded apart."""
    rows = [(node.name, node.by_domain) for node in record.measured]
    rows += [(reference.name, reference.by_domain) for reference in record.references]
    rows = [(name, values) for name, values in rows if set(record.domains) <= set(values)]
    table = np.array([[values[domain] for domain in record.domains] for _, values in rows])
    written = [[record.metric.show(value) for value in row] for row in table]
    shades = column_shades(table if record.metric.higher_is_better else -table)
    columns = [domain or "no domain" for domain in record.domains]
    return _matrix(shades, written, [name for name, _ in rows], columns, "domain", "model")


def column_shades(table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How dark each cell is, 0 to 1: the best of every column is 1, and what is as far below the median as the best is
    above it is 0, so that one bad row does not take the whole range.
    """
    best, middle = table.max(0), np.median(table, axis=0)
    low = np.where(best > middle, 2 * middle - best, table.min(0))
    span = np.where(best > low, best - low, 1)
    shades: npt.NDArray[np.float64] = np.clip(1 - (best - table) / span, 0, 1)
    return shades


def _matrix(
    shades: npt.NDArray[np.float64],
    written: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    across: str,
    down: str,
) -> Figure:
    """A heat map whose cells are as dark as *shades* (0 to 1) and say what is *written*; as large as its names need."""
    wide, high = max(_NARROWEST, min(len(columns) * _CELL_WIDE, _MOST)), min(len(rows) * _CELL_HIGH, _MOST)
    cell = wide / len(columns), high / len(rows)
    size = max(_SMALLEST, min(_SIZE, 60 * min(cell)))
    rows, columns = [_short(name) for name in rows], [_short(name) for name in columns]
    angle = _angle(max(_widths(columns, size)), cell[0], size)
    left = _EDGE + _TITLE + max(_widths(rows, size)) + _PAD
    top, right = _TITLE + size / 72 + 2 * _PAD, _EDGE + _PAD
    if angle:
        reach = max(_widths(columns, size)) + size / 72
        top += reach * math.sin(math.radians(angle))
        right += reach * math.cos(math.radians(angle))
    figure = new_figure(left + wide + right, _EDGE + high + top)
    axes = axes_at(figure, left, _EDGE, wide, high)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    for i, row in enumerate(shades):
        for j, shade in enumerate(row):
            # No darker than ink can be read on, in light and in dark.
            axes.fill([j, j + 1, j + 1, j], [i, i, i + 1, i + 1], color=COLORS["leaf"], alpha=0.6 * float(shade), lw=0)
            if max(shades.shape) <= _MOST_WRITTEN:
                text = axes.text(j + 0.5, i + 0.5, written[i][j], color=COLORS["ink"], fontsize=min(size, 22 * cell[0]))
                text.set(ha="center", va="center")
    _name(axes, rows, columns, size, angle)
    figure.text(_EDGE / figure.get_figwidth(), 1 - _EDGE / figure.get_figheight(), f"{down} ↓   {across} →",
                color=COLORS["muted"], va="top")  # fmt: skip
    return figure


def _angle(widest: float, cell: float, size: float) -> float:
    """How column names lie above columns *cell* inches wide, in degrees: level, slanted or upright."""
    if widest <= cell - _PAD / 2:
        return 0
    return _SLANT if cell * math.sin(math.radians(_SLANT)) > 1.2 * size / 72 else 90


def _widths(names: Sequence[str], size: float) -> list[float]:
    """The widths of *names* in inches, measured by the renderer that draws them."""
    figure = new_figure(1, 1)
    return [figure.text(0, 0, name, fontsize=size).get_window_extent().width / figure.dpi for name in names]


def _name(axes: Axes, rows: Sequence[str], columns: Sequence[str], size: float, angle: float) -> None:
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.tick_params(length=0, labelsize=size)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    for label in axes.get_xticklabels() if angle else ():
        label.set(rotation=angle, ha="left", va="center" if angle == 90 else "baseline", rotation_mode="anchor")


def _short(name: str) -> str:
    return name if len(name) <= _CHARACTERS else f"{name[: _CHARACTERS - 1]}…"
