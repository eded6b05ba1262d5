"""What teachers say, kept: on the same windows or examples they say the same in every epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ract.data.example_batches import Indices


class KeptAnswers:
    """The teachers' distributions at every target of the train split, in fp16: exact to 5e-4 of themselves, below 6e-5
    to 3e-8.

    *pieces* are the windows or examples in the order in which the teachers are asked, *targets* is how many targets
    each of those has.
    """

    def __init__(self, pieces: Sequence[Indices], targets: Indices) -> None:
        order = np.concatenate(pieces)
        self._count = targets
        self._first = np.zeros(len(targets), dtype=np.int64)
        self._first[order] = np.cumsum(targets[order]) - targets[order]
        self._size, self._filled = int(targets[order].sum()), 0
        self._said: torch.Tensor | None = None

    def add(self, said: torch.Tensor) -> None:
        """Keep what was said on the next piece: (its targets, classes)."""
        if self._said is None:
            self._said = torch.empty(self._size, said.shape[1], dtype=torch.float16)
        self._said[self._filled : self._filled + len(said)] = said
        self._filled += len(said)

    def at(self, members: Indices) -> torch.Tensor:
        """The distributions at the targets of *members*, one after the other: (targets, classes)."""
        assert self._said is not None and self._filled == self._size
        first, count = self._first[members], self._count[members]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return self._said[torch.from_numpy(np.repeat(first, count) + within)]
