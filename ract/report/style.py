"""One look for all figures: colours that colour-blind readers can tell apart, fonts that are there, sizes in inches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

# Every colour has a value of its own: in the HTML report each becomes a CSS variable, with a second value for the dark.
COLORS = {
    "ink": "#1b1f24",
    "muted": "#5b6570",
    "grid": "#dde2e7",
    "surface": "#ffffff",
    "box": "#f6f8fa",
    "leaf": "#0072b2",  # the hues are those of Okabe and Ito, Color Universal Design
    "branch": "#56b4e9",
    "aggregate": "#009e73",
    "heal": "#d55e00",
    "baseline": "#6f6f78",
}
MARKERS = {"leaf": "o", "branch": "^", "merge": "D", "stack": "s", "upcycle": "p", "ensemble": "h", "heal": "v",
           "base": "*", "pretrain": "8", "distill": "P"}  # fmt: skip
_LIKE = {"base": "leaf", "pretrain": "leaf", "distill": "heal"}
_MOST_PIXELS = 30_000  # of a side of a PNG; the figure of a very wide tree gets coarser
_CHINESE = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC", "Microsoft YaHei", "SimHei")


def color_of(method: str) -> str:
    """The colour of a node's method; the ways to aggregate share one."""
    return COLORS[color_name(method)]


def color_name(method: str) -> str:
    """The name of that colour in :data:`COLORS`."""
    name = _LIKE.get(method, method)
    return name if name in COLORS else "aggregate"


def marker_of(method: str) -> str:
    """The marker of a node's method, so that no reader depends on colour."""
    return MARKERS.get(method, "X")


@contextmanager
def figure_style() -> Iterator[None]:
    """Matplotlib's settings for the figures made and saved inside the block; outside they are as before."""
    installed = set(fontManager.get_font_names())
    settings: dict[str, Any] = {
        "font.family": ["DejaVu Sans", *(name for name in _CHINESE if name in installed)],
        "font.size": 9,
        "text.parse_math": False,
        "text.color": COLORS["ink"],
        "axes.edgecolor": COLORS["muted"],
        "axes.labelcolor": COLORS["muted"],
        "axes.facecolor": "none",
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": COLORS["grid"],
        "grid.linewidth": 0.6,
        "xtick.color": COLORS["muted"],
        "ytick.color": COLORS["muted"],
        "figure.facecolor": COLORS["surface"],
        "savefig.facecolor": COLORS["surface"],
        "svg.fonttype": "path",  # the same picture wherever it is opened
        "svg.hashsalt": "ract",  # and the same file from the same record
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of *width* × *height* inches with a canvas of its own, outside pyplot's registry."""
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches from the lower left corner."""
    whole_width, whole_height = figure.get_size_inches()
    return figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))


def save(figure: Figure, path: Path) -> None:
    """Write *figure* as PNG or SVG, by the ending of *path*; the same figure gives the same bytes."""
    metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    dpi = min(150.0, _MOST_PIXELS / max(figure.get_size_inches()))
    figure.savefig(path, dpi=dpi, metadata=metadata)


def as_svg(figure: Figure) -> str:
    """*figure* as the text of an SVG file."""
    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
