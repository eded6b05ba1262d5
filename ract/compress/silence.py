"""A live model as if a part of it were gone: what a pruned model must compute, known before anything is written.

The same hooks look at what flows through a part, to say how much it contributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ract.aggregate.loaded import Batch
from ract.model.live import saved_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def module_of(model: PreTrainedModel, weight: str) -> nn.Module:
    """The module whose weight is saved as *weight*."""
    live = next(name for name, saved in saved_names(model).items() if saved == (weight,))
    return model.get_submodule(live.rpartition(".")[0])


@contextmanager
def skipped(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Every one of *blocks* hands on what it is given."""

    def hand_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(hand_on, with_kwargs=True).remove)
        yield


@contextmanager
def silenced(kept: Mapping[nn.Module, torch.Tensor]) -> Iterator[None]:
    """Every module of *kept* sees zero in all of its inputs but those whose numbers are given."""

    def masking(numbers: torch.Tensor) -> Callable[..., Any]:
        def mask(module: nn.Module, args: tuple[Any, ...]) -> Any:
            heard = torch.zeros(args[0].shape[-1], dtype=args[0].dtype)
            heard[numbers] = 1
            return (args[0] * heard, *args[1:])

        return mask

    with ExitStack() as stack:
        for module, numbers in kept.items():
            stack.callback(module.register_forward_pre_hook(masking(numbers)).remove)
        yield


@torch.no_grad()
def second_moments(
    model: PreTrainedModel, modules: Mapping[nn.Module, tuple[int, bool]], batches: Sequence[Batch]
) -> dict[nn.Module, torch.Tensor]:
    """``E[x xᵀ]`` of each module's input over *batches*, in diagonal blocks: (groups, size, size), fp64.

    *modules* gives for each the size of its groups of neighbouring inputs, and whether it reads the target of an
    encoder-decoder. Positions that are padding do not count.
    """
    sums: dict[nn.Module, torch.Tensor] = {}
    counts: dict[nn.Module, int] = {}
    current: dict[str, torch.Tensor] = {}

    def adding(module: nn.Module, size: int, target: bool) -> Callable[..., None]:
        def add(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            real = current["labels"] >= 0 if target else current["attention_mask"].bool()
            rows = x[real] if x.shape[:-1] == real.shape else x.flatten(0, -2)
            groups = rows.unflatten(-1, (-1, size)).double()
            sums[module] = sums.get(module, 0.0) + torch.einsum("ngi,ngj->gij", groups, groups)
            counts[module] = counts.get(module, 0) + len(rows)

        return add

    with ExitStack() as stack:
        for module, (size, target) in modules.items():
            stack.callback(module.register_forward_pre_hook(adding(module, size, target)).remove)
        for batch in batches:
            current = dict(batch)
            model(**batch)
    return {module: total / counts[module] for module, total in sums.items()}
