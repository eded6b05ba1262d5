"""The figures of a run, from its record alone: the tree, loss against compute, quality against size and compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import TextWrapper

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from ract.plan.quantities import show_count, show_size
from ract.report.labels import Label, place_labels
from ract.report.metrics import LOSS_OF
from ract.report.schema import NodeRecord, Record
from ract.report.style import COLORS, axes_at, color_of, figure_style, marker_of, new_figure, save
from ract.report.task_figures import confusion_figure, domains_figure
from ract.report.tree_figure import tree_figure

WIDE, NARROW = 7.2, 3.4  # inches
_LABELLED_ONE_BY_ONE = 14
_LOG_FROM = 20.0
_ATTEMPTS, _GROWTH = 5, 1.25
_LEFT, _BOTTOM, _RIGHT, _TOP, _BETWEEN = 0.6, 0.5, 0.22, 0.3, 0.3  # inches around axes


def draw_all(record: Record, folder: Path) -> None:
    """Write ``tree``, ``loss``, ``quality`` and what the task has beside them as PNG and SVG into *folder*."""
    with figure_style():
        for name, figure in (
            ("tree", tree_figure(record)),
            ("loss", loss_figure(record)),
            ("quality", quality_figure(record)),
            *([("confusion", confusion_figure(record))] if record.confusion else []),
            *([("domains", domains_figure(record))] if record.domains else []),
        ):
            for suffix in (".png", ".svg"):
                save(figure, folder / f"{name}{suffix}")


def loss_figure(record: Record, width: float = WIDE) -> Figure:
    """Valid loss of every training run against the FLOPs spent on the node and on everything below it."""
    return _roomy(lambda height: _draw_loss(record, width, height), 3.6 if width >= WIDE else 3.2)


def quality_figure(record: Record, width: float = WIDE) -> Figure:
    """The task's metric of every node against its size and FLOPs: beside each other, or stacked where narrow."""
    return _roomy(lambda height: _draw_quality(record, width, height), 3.4 if width >= WIDE else 3.0)


@dataclass(frozen=True)
class _Curve:
    node: NodeRecord
    flops: list[float]
    loss: list[float]


def _curves(record: Record) -> list[_Curve]:
    found = []
    for node in record.nodes:
        if node.method == "pretrain":  # its loss, of masked tokens, is none of the task's
            continue
        points = [(p.tokens, p.valid_loss) for p in node.history if p.valid_loss is not None]
        if points and node.tokens:
            below = node.train_flops - node.own_flops
            flops = [below + node.own_flops * tokens / node.tokens for tokens, _ in points]
            found.append(_Curve(node, flops, [loss for _, loss in points]))
    return found


def _draw_loss(record: Record, width: float, height: float) -> tuple[Figure, bool]:
    figure = new_figure(width, height)
    axes = axes_at(figure, _LEFT, _BOTTOM, width - _LEFT - _RIGHT, height - _BOTTOM - _TOP)
    curves = _curves(record)
    ends = {curve.node.name: (curve.flops[-1], curve.loss[-1]) for curve in curves}
    lines: list[np.ndarray] = []
    axes.set_xlabel("training FLOPs, with everything below")
    _set_title(axes, f"valid loss, nats per {LOSS_OF[record.task]}")
    for curve in curves:
        (line,) = axes.plot(curve.flops, curve.loss, color=color_of(curve.node.method), linewidth=1.6)
        line.set(linestyle="--" if curve.node.name == record.baseline else "-")
        line.set(marker=marker_of(curve.node.method), markersize=4.5, markevery=[-1])
        lines.append(np.column_stack([curve.flops, curve.loss]))
        for name in _trained_below(record, curve.node, set(ends)):
            lines.append(np.array([ends[name], (curve.flops[0], curve.loss[0])]))
            axes.plot(*lines[-1].T, color=COLORS["muted"], linewidth=0.8, linestyle=":")
    _set_scale(axes, "x", [x for c in curves for x in c.flops], show_count, start_at_zero=True)
    _set_scale(axes, "y", [y for c in curves for y in c.loss], lambda y: f"{y:g}")
    labels = [
        Label(text, *ends[node.name])
        for text, node in _names([c.node for c in curves], lambda n: n.history[-1].valid_loss or 0.0, width)
    ]
    return figure, _place(axes, labels, lines, width)


def _trained_below(record: Record, node: NodeRecord, trained: set[str]) -> list[str]:
    """The training runs that *node* goes on from, seen through aggregated nodes."""
    found: dict[str, None] = {}
    for parent in node.parents:
        names = [parent] if parent in trained else _trained_below(record, record[parent], trained)
        found |= dict.fromkeys(names)
    return list(found)


def _draw_quality(record: Record, width: float, height: float) -> tuple[Figure, bool]:
    beside = width >= WIDE
    figure = new_figure(width, height if beside else 2 * height)
    inner = (width - _LEFT - _RIGHT - _BETWEEN) / 2 if beside else width - _LEFT - _RIGHT
    high = height - _BOTTOM - _TOP
    left = axes_at(figure, _LEFT, _BOTTOM if beside else height + _BOTTOM, inner, high)
    right = axes_at(figure, _LEFT + inner + _BETWEEN if beside else _LEFT, _BOTTOM, inner, high)
    complete, metric, nodes = True, record.metric, record.measured
    quality = {node.name: node.quality or 0.0 for node in nodes}
    levels = [*quality.values(), *(reference.quality for reference in record.references)]
    for axes, label, values, show in (
        (left, "size of the weights", [float(n.size_bytes) for n in nodes], show_size),
        (right, "training FLOPs, with everything below", [n.train_flops for n in nodes], show_count),
    ):
        axes.set_xlabel(label)
        _scatter(axes, record, nodes, values)
        _set_scale(axes, "x", values, show, start_at_zero=True)
        _set_scale(axes, "y", levels, lambda y: format(y, metric.tick), linear=metric.higher_is_better)
        if axes is left or not beside:
            _set_title(axes, f"{record.split} {metric.label}")
        else:
            axes.tick_params(labelleft=False)
        x_of = dict(zip((n.name for n in nodes), values, strict=True))
        labels = [
            Label(text, x_of[node.name], quality[node.name])
            for text, node in _names(nodes, lambda n: quality[n.name], width)
        ]
        lines = [np.array([[x, quality[n.name]]]) for x, n in zip(values, nodes, strict=True)]
        begin, end = axes.get_xlim()
        lines += [np.array([[begin, level], [end, level]]) for level in _levels(record)]
        if axes is left:
            labels += [Label(_wrapper(width).fill(r.name), begin, r.quality) for r in record.references]
        complete &= _place(axes, labels, lines, width)
    return figure, complete


def _levels(record: Record) -> list[float]:
    """What every point is compared with: the baseline, then the references."""
    baseline = record[record.baseline].quality if record.baseline is not None else None
    return [*([baseline] if baseline is not None else []), *(reference.quality for reference in record.references)]


def _scatter(axes: Axes, record: Record, nodes: Sequence[NodeRecord], values: Sequence[float]) -> None:
    for number, level in enumerate(_levels(record)):
        dashes = (4, 3) if number == 0 and record.baseline is not None else (1, 2)
        axes.axhline(level, color=COLORS["baseline"], lw=0.8, ls=(0, dashes), zorder=1)
    for x, node in zip(values, nodes, strict=True):
        (point,) = axes.plot(x, node.quality or 0.0, color=color_of(node.method), linestyle="none", zorder=3)
        point.set(marker=marker_of(node.method), markersize=7.0 if node.name == record.final else 5.0)
        point.set(markeredgecolor=COLORS["surface"], markeredgewidth=0.5)


def _names(
    nodes: Sequence[NodeRecord], height: Callable[[NodeRecord], float], width: float
) -> list[tuple[str, NodeRecord]]:
    """Labels and the nodes they stand at: every node its own; in a large tree one for those of a kind and level."""
    wrap = _wrapper(width)
    if len(nodes) <= _LABELLED_ONE_BY_ONE:
        return [(wrap.fill(node.name), node) for node in nodes]
    kinds: dict[tuple[int, str], list[NodeRecord]] = {}
    for node in nodes:
        kinds.setdefault((node.level, node.method), []).append(node)
    found = []
    for (level, method), members in kinds.items():
        middle = sorted(members, key=height)[len(members) // 2]
        alone = len(members) == 1
        found.append((wrap.fill(middle.name) if alone else f"{len(members)} × {method},\nlevel {level}", middle))
    return found


def _wrapper(width: float) -> TextWrapper:
    return TextWrapper(24 if width >= WIDE else 18)


def _place(axes: Axes, labels: list[Label], lines: Sequence[np.ndarray], width: float) -> bool:
    size = 8.0 if width >= WIDE else 7.0
    return place_labels(axes, labels, lines=lines, size=size, color=COLORS["ink"], line_color=COLORS["muted"])


def _set_title(axes: Axes, text: str) -> None:
    """What the vertical axis shows, written above it, where it takes no width."""
    above = axes.transAxes + ScaledTranslation(0, 0.08, axes.figure.dpi_scale_trans)
    axes.text(0, 1, text, transform=above, color=COLORS["muted"], va="bottom")


def _set_scale(
    axes: Axes,
    which: str,
    values: Sequence[float],
    show: Callable[[float], str],
    *,
    start_at_zero: bool = False,
    linear: bool = False,
) -> None:
    """Final limits with some room around *values*; logarithmic where they span more than 20-fold and not *linear*."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    axis = axes.xaxis if which == "x" else axes.yaxis
    set_limits = axes.set_xlim if which == "x" else axes.set_ylim
    if low > 0 and high / low > _LOG_FROM and not linear:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        room = (high / low) ** 0.08
        set_limits(low / room, high * room)
        axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 300 else (1.0, 3.0)))
        axis.set_minor_locator(NullLocator())
    else:
        room = 0.12 * ((high if start_at_zero else high - low) or abs(high) or 1.0)
        set_limits(0 if start_at_zero else low - room, high + room)
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))


def _roomy(draw: Callable[[float], tuple[Figure, bool]], height: float) -> Figure:
    """The figure drawn at *height*, or higher where its labels need that."""
    for _ in range(_ATTEMPTS):
        figure, complete = draw(height)
        if complete:
            break
        height *= _GROWTH
    return figure
