"""Where the boxes of the tree stand: rows by distance from the leaves, columns so that nothing overlaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import isotonic_regression


def tree_layout(parents: Mapping[str, Sequence[str]]) -> dict[str, tuple[float, int]]:
    """Column and row of every node of *parents* (node → what it is made from, parents listed first).

    The row is the longest way from a leaf (row 0). Columns are in units of a box and its gap: in a row they are at
    least 1 apart and in the given order; a node stands as near as that allows to the middle of its neighbours.
    """
    row_of: dict[str, int] = {}
    for name, below in parents.items():
        row_of[name] = 1 + max((row_of[p] for p in below), default=-1)
    rows = [[n for n in row_of if row_of[n] == r] for r in range(max(row_of.values()) + 1)]
    neighbours: dict[str, list[str]] = {name: list(below) for name, below in parents.items()}
    for name, below in parents.items():
        for parent in below:
            neighbours[parent].append(name)
    widest = max(range(len(rows)), key=lambda r: len(rows[r]))
    column: dict[str, float] = {}
    for row in [*range(widest, len(rows)), *range(widest - 1, -1, -1)]:
        wanted = []
        for index, name in enumerate(rows[row]):
            near = [column[n] for n in neighbours[name] if n in column]
            wanted.append(sum(near) / len(near) if near else float(index))
        column |= dict(zip(rows[row], spread(wanted, 1.0), strict=True))
    left = min(column.values())
    return {name: (column[name] - left, row_of[name]) for name in parents}


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """The positions nearest to *wanted* (least squares) that keep its order and are at least *gap* apart."""
    steps = gap * np.arange(len(wanted))
    return (isotonic_regression(np.asarray(wanted) - steps).x + steps).tolist()
