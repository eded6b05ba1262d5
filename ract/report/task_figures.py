"""Figures of classification and translation: the confusion matrix, and quality by domain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ract.report.schema import Record
from ract.report.style import COLORS, axes_at, new_figure

_CELL, _LEFT, _TOP, _EDGE = 0.62, 2.1, 0.75, 0.25  # inches
_MOST_WRITTEN = 20  # numbers in cells of a matrix with more rows could not be read
_CHARACTERS = 28


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
    low, high = np.median(table, axis=0) - (table.max(0) - np.median(table, axis=0)), table.max(0)
    shades = np.clip((table - low) / np.where(high > low, high - low, 1), 0, 1)  # one bad row does not take the range
    if not record.metric.higher_is_better:
        shades = 1 - shades
    written = [[record.metric.show(value) for value in row] for row in table]
    names = [name for name, _ in rows]
    return _matrix(shades, written, names, record.domains, "domain", "model")


def _matrix(
    shades: npt.NDArray[np.float64],
    written: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    across: str,
    down: str,
) -> Figure:
    """A heat map whose cells are as dark as *shades* (0 to 1) and say what is *written*."""
    count = len(rows), len(columns)
    cell = min(_CELL, 7.0 / max(count)) if max(count) > _MOST_WRITTEN else _CELL
    wide, high = max(1.4, 1.4 * cell * count[1]), max(0.7, cell * count[0])
    figure = new_figure(_LEFT + wide + _EDGE, _TOP + high + _EDGE)
    axes = axes_at(figure, _LEFT, _EDGE, wide, high)
    axes.set(xlim=(0, count[1]), ylim=(count[0], 0))
    for i, row in enumerate(shades):
        for j, shade in enumerate(row):
            # No darker than ink can be read on, in light and in dark.
            axes.fill([j, j + 1, j + 1, j], [i, i, i + 1, i + 1], color=COLORS["leaf"], alpha=0.6 * float(shade), lw=0)
            if max(count) <= _MOST_WRITTEN:
                axes.text(j + 0.5, i + 0.5, written[i][j], ha="center", va="center", color=COLORS["ink"], fontsize=8)
    _name(axes, rows, columns, across, down)
    return figure


def _name(axes: Axes, rows: Sequence[str], columns: Sequence[str], across: str, down: str) -> None:
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks(np.arange(len(columns)) + 0.5, [_short(name) for name in columns])
    axes.set_yticks(np.arange(len(rows)) + 0.5, [_short(name) for name in rows])
    axes.tick_params(length=0, labelsize=8)
    axes.grid(visible=False)
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    if any(len(name) > 9 for name in columns) and len(columns) > 4:
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="left")


def _short(name: str) -> str:
    return name if len(name) <= _CHARACTERS else f"{name[: _CHARACTERS - 1]}…"
