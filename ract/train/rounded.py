"""Linear layers on a round number of rows, where every batch of texts has a shape of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_FEWEST = 128  # rows; smaller products are left as they are
_WIDENS = 4  # times as many columns as it has rows, at most: not the head of a vocabulary, whose outputs are large


class RoundedRows(TorchFunctionMode):
    """While it lasts, ``linear`` on a CPU under autocast gets zeros below its rows, up to one of eight sizes an octave.

    oneDNN writes machine code for every shape that it multiplies in bf16, and keeps a thousand. Texts of many lengths
    never end to bring new ones: of a step of a small translator that is 90 ms in 450. Sizes that come again cost
    nothing. What is added is cut off again, so results and gradients are those of the given rows.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Take the place of ``torch.nn.functional.linear`` alone."""
        return (_linear if func is F.linear else func)(*args, **(kwargs or {}))


def rounded(rows: int) -> int:
    """The size that *rows* are filled up to: a multiple of an eighth of the power of two below."""
    step = 1 << max(0, rows.bit_length() - 4)
    return -(-rows // step) * step


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    columns = input.shape[-1]
    rows = input.numel() // max(1, columns)
    missing = rounded(rows) - rows
    if not missing or rows < _FEWEST or len(weight) > _WIDENS * columns or input.device.type != "cpu":
        return F.linear(input, weight, bias)
    given = input.to(torch.get_autocast_dtype("cpu")).reshape(rows, columns)
    return F.linear(F.pad(given, (0, 0, 0, missing)), weight, bias)[:rows].view(*input.shape[:-1], len(weight))
