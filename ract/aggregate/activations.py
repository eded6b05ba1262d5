"""How alike the units of two models behave on the same text: correlations of their activations.

Activation matching (Li et al. 2016, arXiv:1511.07543; Ainsworth et al. 2023, section 3.1). A neuron is known by what it
puts into the down projection, a head by what it puts into the output projection, a hidden unit by the residual stream
before and after every block.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import nn
from transformers import PreTrainedModel

from ract.aggregate.loaded import Batch
from ract.aggregate.permutation import RESIDUAL, Permutation, Symmetries, best_assignment
from ract.model.anatomy import Anatomy
from ract.model.live import saved_names


def match_activations(
    reference: PreTrainedModel, other: PreTrainedModel, anatomy: Anatomy, allowed: Symmetries, batches: Sequence[Batch]
) -> Permutation:
    """The permutation of *other* after which its units correlate most with those of *reference* on *batches*.

    Every group is assigned by itself, since what a unit does depends on no other unit's place.
    """
    moments: dict[str, _Moments] = {}
    for batch in batches:
        first, second = _activations(reference, anatomy, batch), _activations(other, anatomy, batch)
        for group in first:
            moments.setdefault(group, _Moments()).add(first[group], second[group])
    found: Permutation = {}
    for group, size in allowed.sizes.items():
        if group in moments:
            found |= best_assignment(group, allowed, {group: _by_unit(moments[group].correlation(), size)})
    return found


class _Moments:
    """Sums over tokens, from which the correlation of every pair of columns follows."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[torch.Tensor] = []

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        x, y = x.double(), y.double()
        new = [x.sum(0), y.sum(0), x.square().sum(0), y.square().sum(0), x.T @ y]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += len(x)

    def correlation(self) -> torch.Tensor:
        """``(columns of x, columns of y)``; 0 for a column that never changes."""
        x, y, xx, yy, xy = (total / self.count for total in self.sums)
        scale = (xx - x.square()).clamp_min(0).sqrt().outer((yy - y.square()).clamp_min(0).sqrt())
        return torch.where(scale > 1e-12, (xy - x.outer(y)) / scale.clamp_min(1e-12), 0.0)


def _by_unit(correlation: torch.Tensor, size: int) -> torch.Tensor:
    """From columns to units: a head is alike another as far as its dimensions are, one by one."""
    width = len(correlation) // size
    return correlation.reshape(size, width, size, width).diagonal(dim1=1, dim2=3).sum(-1)


@torch.no_grad()
def _activations(model: PreTrainedModel, anatomy: Anatomy, batch: Batch) -> dict[str, torch.Tensor]:
    """Group → activations ``(tokens, columns)`` on *batch*."""
    seen: dict[str, list[torch.Tensor]] = {}

    def note(group: str, value: torch.Tensor) -> None:
        seen.setdefault(group, []).append(value.flatten(0, -2).float())

    memory = {one: name for name, saved in saved_names(model).items() for one in saved}
    with ExitStack() as hooks:
        for stack in anatomy.stacks:
            blocks = model.get_submodule(stack.prefix)
            assert isinstance(blocks, nn.ModuleList)
            for block, module in zip(stack.blocks, blocks, strict=True):
                inner = [(f"heads {a.path}", a.o) for a in block.attentions]
                if block.feed_forward is not None:
                    inner.append((f"feed_forward {block.feed_forward.path}", block.feed_forward.down))
                for group, projection in inner:
                    owner = model.get_submodule(memory[projection.weight].removesuffix(".weight"))
                    hook = owner.register_forward_pre_hook(lambda _, given, group=group: note(group, given[0]))
                    hooks.callback(hook.remove)
                before = module.register_forward_pre_hook(lambda _, given: note(RESIDUAL, given[0]) if given else None)
                after = module.register_forward_hook(lambda _, given, out: note(RESIDUAL, _first(out)))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
        model(**batch)
    return {group: torch.cat(values) for group, values in seen.items()}


def _first(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]
