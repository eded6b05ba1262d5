"""The tree of a run: a box per node, levels from bottom to top, α on the edges, the baseline apart."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ract.plan.quantities import show_count, show_size
from ract.report.layout import tree_layout
from ract.report.schema import NodeRecord, Record
from ract.report.style import COLORS, axes_at, color_of, new_figure

FINAL = "final-node"  # the id of the final node's box
_SIZE = 8.0  # points
_LINE, _PAD, _BAR = 0.155, 0.09, 0.06  # inches: a line of text, the room around it, the coloured bar
_COLUMN_GAP, _ROW_GAP, _MARGIN, _LEVELS = 0.16, 0.52, 0.1, 0.3
_NAME_CHARACTERS = 22
_FACTS = 3  # lines below the name


def tree_figure(record: Record) -> Figure:
    """Draw the tree; the figure is as large as its boxes need."""
    lines = {node.name: _lines(record, node) for node in record.nodes}
    box_width = max(_text_widths(lines.values())) + 2 * _PAD + _BAR
    height_of = {name: len(text) * _LINE + 2 * _PAD for name, text in lines.items()}
    box_height = max(height_of.values())
    place = tree_layout({node.name: [*node.parents, *taught_by(node)] for node in record.tree})
    if record.baseline is not None:
        column, row = place[record.final]
        place[record.baseline] = (column + 1.15, row)
    columns, rows = zip(*place.values(), strict=True)
    width = _LEVELS + (max(columns) + 1) * (box_width + _COLUMN_GAP) + _MARGIN
    height = (max(rows) + 1) * box_height + max(rows) * _ROW_GAP + 2 * _MARGIN
    figure = new_figure(width, height)
    axes = axes_at(figure, 0, 0, width, height)
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    centre = {
        name: (
            _LEVELS + (column + 0.5) * (box_width + _COLUMN_GAP),
            _MARGIN + row * (box_height + _ROW_GAP) + box_height / 2,
        )
        for name, (column, row) in place.items()
    }
    for node in record.nodes:
        # A long line down to where training began would run behind boxes and seem to join them: it is left out.
        began = {p for p in node.parents if record[p].method in ("pretrain", "base")}
        far = {p for p in began if place[node.name][1] - place[p][1] > 1}
        _draw_edges(axes, node, centre, height_of, far)
    for node in record.nodes:
        _draw_box(axes, record, node, lines[node.name], centre[node.name], box_width, height_of[node.name])
    _draw_levels(axes, record, {name: place[name][1] for name in place}, box_height, width)
    return figure


def taught_by(node: NodeRecord) -> list[str]:
    """The nodes that a student stands on without being made of their weights."""
    return node.teachers if node.method == "distill" else []


def edge_label(node: NodeRecord, index: int) -> str:
    """What stands on the edge from the parent *index* to *node*: its α, or how many copies of it were stacked."""
    groups = list(node.weights.values()) if isinstance(node.weights, dict) else [node.weights] if node.weights else []
    if not groups:
        return ""
    if len(node.parents) == 1 and len(groups[0]) > 1:
        return f"× {len(groups[0])}"
    low, high = (f"{end(alpha[index] for alpha in groups):.2f}" for end in (min, max))
    return f"α {low}" if low == high else f"α {low}–{high}"


def _lines(record: Record, node: NodeRecord) -> list[str]:
    return [
        *textwrap.wrap(node.name, _NAME_CHARACTERS),
        f"{node.method}, {show_size(node.size_bytes)}",
        f"{show_count(node.parameters)} parameters",
        _quality(record, node),
    ]


def _quality(record: Record, node: NodeRecord) -> str:
    """The node's metric; what a node that does not do the task yet has instead."""
    if node.quality is not None:
        form = ".3f" if record.task == "language-modeling" else record.metric.form
        return f"{format(node.quality, form)} {record.metric.short}"
    losses = [point.valid_loss for point in node.history if point.valid_loss is not None]
    return f"{losses[-1]:.3f} nats/token" if losses else "not measured"


def _text_widths(texts: Iterable[list[str]]) -> list[float]:
    """The width in inches of every line, measured by the renderer that draws it."""
    figure = new_figure(1, 1)
    widths = []
    for lines in texts:
        for number, line in enumerate(lines):
            text = figure.text(0, 0, line, fontsize=_SIZE, weight="bold" if number < len(lines) - _FACTS else "normal")
            widths.append(text.get_window_extent().width / figure.dpi)
            text.remove()
    return widths


def _draw_box(
    axes: Axes,
    record: Record,
    node: NodeRecord,
    lines: list[str],
    centre: tuple[float, float],
    width: float,
    height: float,
) -> None:
    left, bottom = centre[0] - width / 2, centre[1] - height / 2
    color = color_of(node.method)
    edge: dict[str, Any] = {"edgecolor": color, "linewidth": 2.0 if node.name == record.final else 0.8}
    if node.name == record.baseline:
        edge["linestyle"] = (0, (3, 2))
    style = "round,pad=0,rounding_size=0.05"
    frame = FancyBboxPatch((left, bottom), width, height, boxstyle=style, facecolor=COLORS["box"], **edge)
    frame.set_gid(FINAL if node.name == record.final else None)
    axes.add_patch(frame)
    axes.add_patch(FancyBboxPatch((left, bottom), _BAR, height, boxstyle=style, facecolor=color, edgecolor="none"))
    for number, line in enumerate(lines):
        axes.text(
            left + _BAR + _PAD,
            bottom + height - _PAD - (number + 0.5) * _LINE,
            line,
            fontsize=_SIZE,
            va="center",
            weight="bold" if number < len(lines) - _FACTS else "normal",
            color=COLORS["muted"] if len(lines) - _FACTS <= number < len(lines) - 1 else COLORS["ink"],
        )


def _draw_edges(
    axes: Axes,
    node: NodeRecord,
    centre: dict[str, tuple[float, float]],
    height_of: dict[str, float],
    left_out: set[str],
) -> None:
    x, y = centre[node.name]
    labels = [(p, edge_label(node, index), "-") for index, p in enumerate(node.parents) if p not in left_out]
    for parent, label, style in [*labels, *((teacher, "teaches", "--") for teacher in taught_by(node))]:
        from_x, from_y = centre[parent]
        begin, end = from_y + height_of[parent] / 2, y - height_of[node.name] / 2
        axes.plot([from_x, x], [begin, end], color=COLORS["muted"], linewidth=0.9, linestyle=style, zorder=0)
        if label:
            axes.text(
                from_x,
                begin + 0.13,
                label,
                fontsize=_SIZE,
                ha="center",
                va="center",
                bbox={"facecolor": COLORS["surface"], "edgecolor": "none", "pad": 1.5},
            )


def _draw_levels(axes: Axes, record: Record, row_of: dict[str, int], box_height: float, width: float) -> None:
    """The names of the levels at the left, a dotted line above each."""
    step = box_height + _ROW_GAP
    levels = sorted({node.level for node in record.tree})
    for level in levels:
        rows = [row_of[node.name] for node in record.tree if node.level == level]
        middle = _MARGIN + (min(rows) + max(rows)) / 2 * step + box_height / 2
        text = axes.text(_LEVELS / 2, middle, f"level {level}", fontsize=_SIZE, rotation=90, color=COLORS["muted"])
        text.set(ha="center", va="center")
        if level != levels[-1]:
            top = _MARGIN + (max(rows) + 1) * step - 0.18
            axes.plot([_MARGIN, width - _MARGIN], [top, top], color=COLORS["grid"], linewidth=0.8, ls=":", zorder=-1)
