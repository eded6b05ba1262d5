"""What teachers say, kept: on the same windows or examples they say the same in every epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ract.data.example_batches import Indices


class KeptAnswers:
    """The teachers' distributions at every target of the train split, in fp16: exact to 5e-4 of themselves, below 6e-5
    to 3e-8.

    *pieces* are the windows or examples in the order in which the teachers were asked, *said* what they said on each
    piece: fp16 (its targets, classes). *targets* is how many targets each window or example has.
    """

    def __init__(self, pieces: Sequence[Indices], said: Sequence[torch.Tensor], targets: Indices) -> None:
        order = np.concatenate(pieces)
        self._count = targets
        self._first = np.zeros(len(targets), dtype=np.int64)
        self._first[order] = np.cumsum(targets[order]) - targets[order]
        self._said = torch.cat(list(said))

    def at(self, members: Indices) -> torch.Tensor:
        """The distributions at the targets of *members*, one after the other: (targets, classes)."""
        first, count = self._first[members], self._count[members]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return self._said[torch.from_numpy(np.repeat(first, count) + within)]
