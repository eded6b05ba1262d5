"""Weights in 4 or 8 bits by blocks, as ONNX Runtime's ``MatMulNBits`` and ``GatherBlockQuantized`` read them.

Each block of a row shares one scale: ``w ≈ scale · (q − 2^(bits−1))``. The scale is the one with the least squared
error among a few around the usual ``max |w| / (2^(bits−1) − 1)``, as llama.cpp's quantizers choose theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_BLOCKS = (128, 64, 32, 16)  # the larger, the fewer scales to read: a quarter of a step's time in 4 bits (docs/log.md)
_CANDIDATES = {8: (1.0,), 4: tuple(np.linspace(0.75, 1.2, 16))}
_AT_ONCE = 1 << 22  # numbers, so that the search over scales stays small in memory


@dataclass(frozen=True)
class Quantized:
    """A matrix (rows, columns): *packed* uint8 (rows, blocks, block · bits / 8), *scales* (rows, blocks)."""

    packed: npt.NDArray[np.uint8]
    scales: Floats
    bits: int
    block: int

    @property
    def rows(self) -> int:
        """Outputs of the matrix product."""
        return self.packed.shape[0]

    @property
    def columns(self) -> int:
        """Inputs of the matrix product."""
        return self.scales.shape[1] * self.block

    def dequantized(self) -> Floats:
        """The matrix it stands for, (rows, columns)."""
        numbers = self.packed
        if self.bits == 4:
            numbers = np.stack([numbers & 15, numbers >> 4], -1)
        whole = numbers.reshape(*self.scales.shape, self.block).astype(np.float32) - (1 << (self.bits - 1))
        return (whole * self.scales[..., None]).reshape(self.rows, -1)


def block_size(columns: int) -> int | None:
    """The block for rows of *columns* numbers; None when none divides them."""
    return next((block for block in _BLOCKS if columns % block == 0), None)


def quantize(weight: Floats, bits: int) -> Quantized:
    """*weight* (rows, columns) with *bits* a number. Raises ValueError when no block divides the columns."""
    rows, columns = weight.shape
    block = block_size(columns)
    if block is None:
        raise ValueError(f"rows of {columns} numbers are no multiple of {_BLOCKS[-1]}")
    step = max(1, _AT_ONCE // columns)
    parts = [_quantize(weight[i : i + step].reshape(-1, block), bits) for i in range(0, rows, step)]
    numbers, scales = (np.concatenate(part) for part in zip(*parts, strict=True))
    packed = numbers if bits == 8 else numbers[:, ::2] | (numbers[:, 1::2] << 4)
    return Quantized(packed.reshape(rows, columns // block, -1), scales.reshape(rows, -1), bits, block)


def _quantize(blocks: Floats, bits: int) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Numbers (blocks, block) and scales (blocks,)."""
    middle = 1 << (bits - 1)
    # The number with the largest magnitude may use the one step more that negative numbers have.
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)[:, 0]
    best = np.zeros(blocks.shape, np.int8)
    best_scale = np.zeros(len(blocks), np.float32)
    most = np.full(len(blocks), -1.0, np.float32)
    for start in (largest / -middle, np.abs(largest) / (middle - 1)):
        for factor in _CANDIDATES[bits]:
            inverse = np.divide(1 / factor, start, out=np.zeros_like(start), where=start != 0)
            numbers = np.clip(np.rint(blocks * inverse[:, None]), -middle, middle - 1)
            # Given the numbers q, the scale of the least squared error is q·w / q·q, and the error w·w − (q·w)² / q·q.
            square, product = (np.einsum("ij,ij->i", numbers, other) for other in (numbers, blocks))
            explained = np.divide(product * product, square, out=np.zeros_like(square), where=square > 0)
            better = explained > most
            most[better], best[better] = explained[better], numbers[better]
            best_scale[better] = np.divide(product, square, out=np.zeros_like(square), where=square > 0)[better]
    return (best.astype(np.int16) + middle).astype(np.uint8), best_scale
