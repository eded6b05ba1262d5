"""``Σ wᵢ xᵢ`` on a chunk that fits the processor's cache: fp64 accumulation, one rounding.

The result is ``(Σ wᵢ · xᵢ.double()).to(dtype)`` to the last bit. fp32 accumulation would meet that in part, and three
equal children at 1/3 would not give the child back. On chunks in cache fp64 still is as fast as the data arrives
(measured: 10 GB/s of fp32 input a thread, against 8 GB/s from the page cache).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ract.checkpoint.tensors import DTYPES, itemsize

BYTES_PER_ELEMENT = 4 * 8 + 4  # input, term, sum and output in up to fp64; fp32 on the way from fp16

Fill = Callable[[int, memoryview], None]


class NotFinite(ArithmeticError):
    """A chunk has a NaN or an infinity in it, or its sum is beyond the output's dtype."""


class Kernel:
    """The buffers of one thread, for up to *elements* elements at a time, used again for every chunk."""

    def __init__(self, elements: int) -> None:
        self._input = torch.empty(elements * 8, dtype=torch.uint8)
        self._output = torch.empty(elements * 8, dtype=torch.uint8)
        self._sum = torch.empty(elements, dtype=torch.float64)
        self._term = torch.empty(elements, dtype=torch.float64)
        self._single = torch.empty(elements, dtype=torch.float32)
        self._input_bytes = self._input.numpy().data
        self._output_bytes = self._output.numpy().data

    def weighted_sum(
        self, fill: Fill, dtypes: Sequence[str], weights: Sequence[float], count: int, dtype: str
    ) -> memoryview:
        """The bytes of ``Σ weights[i] · xᵢ`` in *dtype*; ``fill(i, buffer)`` puts *count* elements of *xᵢ* in place.

        Raises NotFinite when an input is not finite or the sum too large for *dtype*. The view lasts to the next call.
        """
        total = self._sum[:count]
        if dtype == "F64" and abs(sum(weights) - 1.0) < 1e-12:
            self._anchored_sum(fill, dtypes, weights, total)
        else:
            for number, (source, weight) in enumerate(zip(dtypes, weights, strict=True)):
                # Product and sum are rounded apart, not by a fused instruction, so that the result is that of the
                # plain formula in fp64 to the last bit. The first term is no sum with 0, which would lose −0.
                term = (self._term if number else self._sum)[:count]
                term.copy_(self._load(fill, number, source, count)).mul_(weight)
                if number:
                    total.add_(term)
        out = self._output.view(DTYPES[dtype])[:count]
        self._round(total, out)
        return self._output_bytes[: count * itemsize(dtype)]

    def _anchored_sum(self, fill: Fill, dtypes: Sequence[str], weights: Sequence[float], total: torch.Tensor) -> None:
        """``x₀ + Σ wᵢ (xᵢ − x₀)``: equal fp64 children come back exactly, where their sum could miss the last bit."""
        anchor = self._load(fill, 0, dtypes[0], len(total)).double().clone()
        total.zero_()
        for number in range(1, len(weights)):
            term = self._term[: len(total)].copy_(self._load(fill, number, dtypes[number], len(total)))
            total.add_(term.sub_(anchor), alpha=weights[number])
        torch.where(total == 0, anchor, total + anchor, out=total)

    def same(self, fill: Fill, sources: int, count: int, dtype: str) -> memoryview | None:
        """The bytes that all *sources* share, or None where they differ. Raises NotFinite if *dtype* is a float's."""
        size = count * itemsize(dtype)
        first = self._output_bytes[:size]
        fill(0, first)
        for number in range(1, sources):
            fill(number, self._input_bytes[:size])
            if not torch.equal(self._input[:size], self._output[:size]):
                return None
        values = self._output.view(DTYPES[dtype])[:count]
        if dtype in ("F32", "F64", "F16", "BF16") and not torch.stack(torch.aminmax(values)).isfinite().all():
            raise NotFinite
        return first

    def _load(self, fill: Fill, number: int, dtype: str, count: int) -> torch.Tensor:
        fill(number, self._input_bytes[: count * itemsize(dtype)])
        x = self._input.view(DTYPES[dtype])[:count]
        # fp16 to fp64 has no vector instruction of its own; by way of fp32 it is four times as fast, and as exact.
        return self._single[:count].copy_(x) if dtype == "F16" else x

    def _round(self, total: torch.Tensor, out: torch.Tensor) -> None:
        low, high = (bound.item() for bound in torch.aminmax(total))
        limits = torch.finfo(out.dtype)
        # Up to half a unit in the last place above the largest number rounds down to it.
        if not (max(-low, high) <= limits.max * (1 + limits.eps / 4)):
            raise NotFinite
        out.copy_(total)
