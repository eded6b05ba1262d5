"""Labels beside their points: each in the nearest free place, joined to its point by a line where that is not close."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

Pixels = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]  # left, bottom, right, top
_DISTANCES = (5.5, 11, 20, 31, 43, 57, 73, 91, 111, 133, 157)  # points, from the marker's centre to the label's edge
# Where the label's centre lies from its point, in half widths and half heights: right, corners, left, above and below.
_SIDES = ((1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1), (0, -1))
_SLID = tuple((x, y) for x in (0.5, -0.5, 0.85, -0.85) for y in (1, -1))
_STEEP = tuple((x, y) for y in (3, -3, 5, -5) for x in (1, -1))
_NEAR = 12.0  # beyond this many points a line joins a label to its point
_ROOM = 2.0  # points around a label that stay free
_MARKER = 1.8  # the same around markers, whose own size counts, as a multiple


@dataclass(frozen=True)
class Label:
    """*text* for the point *x*, *y* (data coordinates)."""

    text: str
    x: float
    y: float


def place_labels(
    axes: Axes, labels: Sequence[Label], *, lines: Iterable[Pixels] = (), size: float, color: str, line_color: str
) -> bool:
    """Write *labels* into *axes* so that they overlap neither each other, nor a labelled point, nor *lines*.

    *lines* are polylines in data coordinates, shape ``(n, 2)``; one of a single point is a marker. The limits and the
    place of *axes* must be final.

    Returns False when there was no room for some label, which is then not written: draw a larger figure.
    """
    if not labels:
        return True
    scale = axes.figure.dpi / 72
    points = axes.transData.transform([(label.x, label.y) for label in labels])
    drawn = [axes.transData.transform(line) for line in lines]
    markers = np.concatenate([points, *(line for line in drawn if len(line) == 1)])
    taken = np.concatenate([markers, *map(_sampled, drawn)])
    artists = [_written(axes, label, size, color) for label in labels]
    extents = [artist.get_window_extent() for artist in artists]
    halves = [np.array([extent.width, extent.height]) / 2 for extent in extents]
    places = _places(points, halves, lambda: _Space(axes.get_window_extent(), taken, markers, scale), scale)
    for artist, place, point in zip(artists, places, points, strict=True):
        if place is None:
            artist.remove()
            continue
        artist.set_position(tuple((place.centre - point) / scale))
        if len(place.leader):
            line = axes.transData.inverted().transform(place.leader)
            axes.plot(*line.T, color=line_color, linewidth=0.6, zorder=1, scalex=False, scaley=False)
    return None not in places


def _written(axes: Axes, label: Label, size: float, color: str) -> Annotation:
    artist = axes.annotate(label.text, (label.x, label.y), (0, 0), textcoords="offset points", fontsize=size)
    artist.set(color=color, ha="center", va="center", linespacing=1.05)
    return artist


@dataclass(frozen=True)
class _Place:
    """The middle of a label and the ends of the line that joins it to its point (none where it is near), in pixels."""

    centre: Pixels
    leader: Pixels


def _places(points: Pixels, halves: Sequence[Pixels], empty: Callable[[], _Space], scale: float) -> list[_Place | None]:
    """A place for every label, in the given order; a label that finds none is tried again before all others."""
    order = list(range(len(points)))
    best: dict[int, _Place | None] = {}
    for _ in points:
        space = empty()
        found = {index: _put(points[index], halves[index], space, scale) for index in order}
        failed = [index for index in order if found[index] is None]
        if not best or len(failed) < list(best.values()).count(None):
            best = found
        if not failed:
            break
        order = [*failed, *(index for index in order if index not in failed)]
    return [best[index] for index in range(len(points))]


class _Space:
    """What is taken in one pair of axes, in pixels."""

    def __init__(self, frame: Bbox, taken: Pixels, markers: Pixels, scale: float) -> None:
        self.frame, self.taken, self.markers, self.room = frame, taken, markers, _ROOM * scale
        self.boxes: list[Box] = []

    def is_free(self, box: Box, leader: Pixels) -> bool:
        """Whether a label may fill *box*, joined to its point (the last of *leader*, which may be empty)."""
        (left, bottom, right, top), frame, room = box, self.frame, self.room
        if left < frame.x0 or right > frame.x1 or bottom < frame.y0 or top > frame.y1:
            return False
        for (x, y), near in ((self.taken.T, room), (self.markers.T, _MARKER * room)):
            if np.any((x > left - near) & (x < right + near) & (y > bottom - near) & (y < top + near)):
                return False
        for l2, b2, r2, t2 in self.boxes:
            if left < r2 + room and right > l2 - room and bottom < t2 + room and top > b2 - room:
                return False
            if np.any((leader[:, 0] > l2) & (leader[:, 0] < r2) & (leader[:, 1] > b2) & (leader[:, 1] < t2)):
                return False
        return not len(leader) or self._passes_no_marker(leader)

    def _passes_no_marker(self, leader: Pixels) -> bool:
        """Whether *leader* keeps away from markers other than its own, so that nobody takes it for theirs."""
        near = 2 * self.room
        others = self.markers[np.linalg.norm(self.markers - leader[-1], axis=1) > near]
        return not np.any(np.linalg.norm(others[:, None] - leader, axis=2) < near)

    def take(self, box: Box, leader: Pixels) -> None:
        self.boxes.append(box)
        self.taken = np.concatenate([self.taken, leader])


def _put(point: Pixels, half: Pixels, space: _Space, scale: float) -> _Place | None:
    """The first free place for a label of *half* its size at *point*, which it takes; None without one."""
    for distance in _DISTANCES:
        for across, up in (*_SIDES, *_SLID, *_STEEP):
            direction = np.array([math.trunc(across), np.sign(up)])
            away = direction / np.linalg.norm(direction) * distance * scale
            centre = point + away + half * [across, up]
            low, high = centre - half, centre + half
            nearest = np.clip(point, low, high)
            joined = math.dist(nearest, point) > _NEAR * scale
            leader = _sampled(np.array([nearest, point])) if joined else np.empty((0, 2))
            box = (low[0], low[1], high[0], high[1])
            if space.is_free(box, leader):
                space.take(box, leader)
                return _Place(centre, np.array([nearest, point]) if joined else np.empty((0, 2)))
    return None


def _sampled(line: Pixels, step: float = 3.0) -> Pixels:
    """Points along a polyline, *step* pixels apart."""
    pieces = [line[:1]]
    for begin, end in pairwise(line):
        count = max(1, math.ceil(math.dist(begin, end) / step))
        pieces.append(begin + (end - begin) * np.linspace(0, 1, count + 1)[1:, None])
    return np.concatenate(pieces)
