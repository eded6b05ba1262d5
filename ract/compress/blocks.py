"""Prune blocks: leave out those without which the model's loss rises least.

Most blocks of a trained decoder change little (ShortGPT, Men et al., arXiv:2403.03853). They are chosen here by the
loss itself, one after the other, each time without the ones that are already gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from ract.aggregate import stack
from ract.aggregate.loaded import Batch, mean_loss
from ract.aggregate.recipe import Recipe
from ract.checkpoint.directory import ModelDirectory
from ract.compress.silence import skipped
from ract.errors import BadInput
from ract.model.anatomy import anatomy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Block = tuple[str, int]
Progress = Callable[[str, int, int], None]


def choose_blocks(
    model: PreTrainedModel,
    directory: ModelDirectory,
    count: int,
    batches: Sequence[Batch],
    progress: Progress | None = None,
) -> list[Block]:
    """The *count* blocks, as (stack, number), that *model* at *directory* can best do without on *batches*.

    Every stack keeps a block, and a block whose absence the architecture cannot say is kept. Raises BadInput when no
    more than that can go.
    """
    without_blocks(directory, [])  # says at once what no block can be left out of
    stacks = {s.name: s for s in anatomy(directory.config).stacks}
    every = [(name, number) for name, s in stacks.items() for number in range(s.depth)]
    gone: list[Block] = []
    for _ in range(count):
        left = [block for block in every if block not in gone]
        alone = [name for name in stacks if sum(block[0] == name for block in left) == 1]
        losses = {}
        for done, block in enumerate(b for b in left if b[0] not in alone):
            with skipped(live_blocks(model, directory, [*gone, block])):
                losses[block] = mean_loss(model, batches)
            if progress:
                progress("choose blocks", done, len(left))
        reason: BadInput | None = None
        for block in sorted(losses, key=lambda b: losses[b]):
            try:
                without_blocks(directory, [*gone, block])
            except BadInput as refusal:
                reason = reason or refusal
            else:
                gone.append(block)
                break
        else:
            raise _none_left(directory, len(every), count, reason)
    return gone


def live_blocks(model: PreTrainedModel, directory: ModelDirectory, blocks: Sequence[Block]) -> list[nn.Module]:
    """The modules of *blocks* in *model*, which is that at *directory*."""
    prefixes = {s.name: s.prefix for s in anatomy(directory.config).stacks}
    return [model.get_submodule(f"{prefixes[name]}.{number}") for name, number in blocks]


def without_blocks(directory: ModelDirectory, gone: Sequence[Block]) -> Recipe:
    """The model at *directory* without the blocks *gone*: its other blocks on top of each other.

    Raises BadInput where the architecture does not count its blocks, or ties what a block does to its place.
    """
    ranges = {
        s.name: [(0, number, number + 1) for number in range(s.depth) if (s.name, number) not in gone]
        for s in anatomy(directory.config).stacks
    }
    return stack.recipe([directory], [1.0], ranges=ranges)


def _none_left(directory: ModelDirectory, depth: int, count: int, reason: BadInput | None) -> BadInput:
    what = f"of the {depth} blocks of {directory.path}, {count} cannot be left out"
    return BadInput(f"{what}: {reason.problem}" if reason else what, "Prune fewer blocks, or prune neurons")
