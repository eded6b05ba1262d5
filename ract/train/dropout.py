"""Dropout in training: for decoders whose architecture has none, such as Qwen3's, and drawn faster than by torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_BRANCHES = ("self_attn", "mlp")
_LEVELS = 1 << 16  # to one of so many a share is rounded


@contextmanager
def residual_dropout(model: nn.Module, share: float) -> Iterator[None]:
    """While it lasts, drop *share* of the embedding's output and of what each attention and feed-forward adds.

    That is where GPT-2 drops (Srivastava et al., 2014; Radford et al., 2019). Only modules in training mode drop; the
    model's weights, its config and what ``save_pretrained`` writes are the same with and without.
    """

    def drop(module: nn.Module, _: Any, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, tuple):  # an attention gives its weights too
            return (F.dropout(output[0], share), *output[1:])
        return F.dropout(output, share)

    with ExitStack() as stack:
        if share > 0:
            for name, module in model.named_modules():
                if isinstance(module, nn.Embedding) or name.rpartition(".")[2] in _BRANCHES:
                    stack.callback(module.register_forward_hook(drop).remove)
        yield


def draws_at_random(model: nn.Module) -> bool:
    """Whether training *model* draws random numbers: some dropout is on, as a module or a number that blocks hold."""
    shares = (
        getattr(module, "p" if isinstance(module, nn.Dropout) else key, 0.0)
        for module in model.modules()
        for key in ("dropout", "attention_dropout", "activation_dropout")
    )
    return any(isinstance(share, (int, float)) and share > 0 for share in shares)


class DrawnDropout(TorchFunctionMode):
    """While it lasts, every ``dropout`` on the CPU draws from a stream of its own that follows from *seed*.

    torch draws one number of a Mersenne twister for each element, one after the other: a third of a step of MiniLM.
    Here four elements share one number of PCG64 (O'Neill, HMC-CS-2014-0905), and what they become is computed in
    vectors: six times as fast.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._draw = np.random.Generator(np.random.PCG64DXSM(seed))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Take the place of ``torch.nn.functional.dropout`` alone."""
        if func is F.dropout:
            return self._dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(
        self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        if not training or not 0 < round(p * _LEVELS) < _LEVELS or input.device.type != "cpu":
            return F.dropout(input, p, training, inplace)
        noise = self._noise(input, p)
        return input.mul_(noise) if inplace else input * noise

    def _noise(self, like: torch.Tensor, p: float) -> torch.Tensor:
        """0 for the share *p* of the elements, 1 / (1 − *p*) for the others."""
        drawn = self._draw.integers(1 << 64, size=-(-like.numel() // 4), dtype=np.uint64).view(np.int16)
        last = round(p * _LEVELS) - _LEVELS // 2 - 1  # of the values that are dropped
        kept = torch.from_numpy(drawn)[: like.numel()].view(like.shape).clamp_(last, last + 1).sub_(last)
        scale = torch.tensor(1 / (1 - p), dtype=like.dtype)
        if like.element_size() == 2:  # the same bits, without a conversion
            return kept.mul_(int(scale.view(torch.int16))).view(like.dtype)
        return kept.to(like.dtype).mul_(scale)
