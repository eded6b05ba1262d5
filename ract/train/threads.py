"""The gradients of a batch, its parts in threads of their own: what keeps several cores busy with a compact model.

The matrix products of a compact model are too small to be shared among cores; a batch is not. Threads share the
weights, so unlike processes (``torchrun``) they have nothing to send each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce

import torch
from torch import nn

from ract.data.example_batches import Batch
from ract.plan.graph import TrainSpec
from ract.train.objective import Objective

Loss = Callable[[Batch], tuple[torch.Tensor, torch.Tensor]]
_Gradients = tuple[tuple[torch.Tensor | None, ...], float]


def parts_of(spec: TrainSpec) -> int:
    """In how many parts the batches of *spec* are cut for the threads of this process; 1: they are not.

    Windows are not cut, and every part has as many of them. A batch that is read in several passes, because one of
    the whole would not fit in memory, is not cut: the parts are in memory together.
    """
    threads = torch.get_num_threads()
    if spec.micro_batch_tokens < spec.batch_tokens:
        return 1
    if spec.reads_windows:
        return math.gcd(threads, spec.batch_tokens // spec.block_size)
    return threads


class ThreadedPass:
    """Makes the gradients of a step in *parts* threads; they are added in the order of the parts, the same every time.

    *loss* gives what is minimised on a micro-batch and what is reported, both summed over its targets. It must not draw
    random numbers: threads share one generator.
    """

    def __init__(self, model: nn.Module, loss: Loss, parts: int) -> None:
        self.parameters = [one for one in model.parameters() if one.requires_grad]
        self.loss, self.parts = loss, parts
        self._pool = ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, objective: Objective, step: int) -> float:
        """Set the gradients of the mean loss of training step *step*; that mean."""
        batches = [objective.micro_batches(step, part, self.parts) for part in range(self.parts)]
        weight = 1 / batches[0][1]
        found = list(self._pool.map(lambda own: self._part(own[0], weight), batches))
        for parameter, *gradients in zip(self.parameters, *(part for part, _ in found), strict=True):
            parameter.grad = reduce(_added, gradients)
        return sum(total for _, total in found)

    def _part(self, batches: Sequence[Batch], weight: float) -> _Gradients:
        """The sum over the micro-batches of one part; a part may be empty."""
        sums: list[torch.Tensor | None] = [None] * len(self.parameters)
        total = 0.0
        for batch in batches:
            minimised, reported = self.loss(batch)
            found = torch.autograd.grad(minimised * weight, self.parameters, allow_unused=True)
            sums = [_added(old, new) for old, new in zip(sums, found, strict=True)]
            total += reported.item() * weight
        return tuple(sums), total


def _added(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    return other if one is None else one if other is None else one + other
