"""Batches of token windows from a token stream: pure functions of their arguments, so a resumed run sees the same data.

A stream of N tokens has ``(N − 1) // block_size`` whole windows. Window *w* is ``tokens[w·B : w·B + B + 1]``: B inputs
and, shifted by one, B targets. Neighbours share one token (the last target of one is the first input of the next), so
every token of the stream but the first is a target exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ract.errors import BadInput

Tokens = npt.NDArray[Any]
_ROUNDS = 6
_MASK64 = (1 << 64) - 1


def window_count(tokens: Tokens, block_size: int, shard: tuple[int, int] = (0, 1)) -> int:
    """How many whole windows *shard* ``(i, n)`` has: every n-th from the i-th on."""
    index, shards = shard
    if not 0 <= index < shards:
        raise ValueError(f"shard {index} of {shards} does not exist")
    windows = max(0, (len(tokens) - 1) // block_size)
    return (windows - index + shards - 1) // shards


def training_batch(
    tokens: Tokens, *, step: int, batch_size: int, block_size: int, seed: int, shard: tuple[int, int] = (0, 1)
) -> npt.NDArray[np.int64]:
    """The batch of training step *step* (from 0): int64 of shape ``(batch_size, block_size + 1)``.

    Inputs are ``batch[:, :-1]``, targets ``batch[:, 1:]``. Which windows: see :func:`training_windows`.
    """
    chosen = training_windows(tokens, step=step, batch_size=batch_size, block_size=block_size, seed=seed, shard=shard)
    return windows_at(tokens, chosen, block_size)


def windows_at(tokens: Tokens, windows: npt.NDArray[np.int64], block_size: int) -> npt.NDArray[np.int64]:
    """The *windows* named by number: int64 of shape ``(len(windows), block_size + 1)``."""
    return tokens[windows[:, None] * block_size + np.arange(block_size + 1)].astype(np.int64)


def training_windows(
    tokens: Tokens, *, step: int, batch_size: int, block_size: int, seed: int, shard: tuple[int, int] = (0, 1)
) -> npt.NDArray[np.int64]:
    """The numbers of the windows of training step *step* (from 0): int64 of shape ``(batch_size,)``.

    *seed* puts all windows in one order; shard ``(i, n)`` is
    every n-th of that order from the i-th on, in every epoch: no window is in two shards of the same *n* and *seed*.
    Each epoch visits every window of the shard once, the first as the order stands, the later ones shuffled anew; a
    batch may span two epochs. So a run over all windows up to step s, then n shards from step s/n on, read no window
    twice in the first epoch.

    Raises BadInput when the shard has no whole window.
    """
    index, shards = shard
    count = window_count(tokens, block_size, shard)
    if count == 0:
        needed = shards * block_size + 1
        raise BadInput(
            f"{len(tokens)} tokens are too few: {shards} shard(s) of a block of {block_size} need {needed}",
            "Add text, or choose a smaller block or fewer members",
        )
    sample = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epoch, position = np.divmod(sample, count)
    for e in np.unique(epoch[epoch > 0]):
        chosen = epoch == e
        position[chosen] = permute(position[chosen], count, key=(seed, index, shards, int(e)))
    return permute(index + shards * position, window_count(tokens, block_size), key=(seed,))


def evaluation_batches(
    tokens: Tokens, block_size: int, batch_size: int, limit_tokens: int | None = None
) -> Iterator[npt.NDArray[np.int64]]:
    """Every window in order, int64 ``(≤ batch_size, block_size + 1)``, then the shorter rest as one row.

    Every token but the first is a target exactly once. With *limit_tokens*, only the first so many targets.
    """
    targets = max(0, len(tokens) - 1)
    if limit_tokens is not None:
        targets = min(targets, limit_tokens)
    windows, rest = divmod(targets, block_size)
    reach = np.arange(block_size + 1)
    for first in range(0, windows, batch_size):
        starts = np.arange(first, min(first + batch_size, windows), dtype=np.int64) * block_size
        yield tokens[starts[:, None] + reach].astype(np.int64)
    if rest:
        start = windows * block_size
        yield tokens[None, start : start + rest + 1].astype(np.int64)


def padded(rows: Sequence[Any], padding: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """*rows* of token numbers as one int64 array (rows, longest; at least 1), and the mask of what is not *padding*."""
    numbers = np.full((len(rows), max(1, *map(len, rows)) if rows else 1), padding, dtype=np.int64)
    mask = np.zeros_like(numbers)
    for place, row in enumerate(rows):
        numbers[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return numbers, mask


def by_length(rows: Sequence[Any], batch_size: int) -> list[list[int]]:
    """The indices of *rows* in batches, rows of like length together, the shortest first."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def permute(position: npt.NDArray[np.int64], count: int, *, key: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Where each *position* (in ``[0, count)``) goes under the pseudo-random permutation named by *key*.

    A Feistel network over the next even number of bits, walked until it lands inside the range (Black and Rogaway,
    "Ciphers with Arbitrary Finite Domains", 2002): no table, and the same on every machine and version of numpy, which
    numpy's own shuffles do not promise.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = _round_keys(key)
    value = position.astype(np.uint64)
    walking = np.ones(value.shape, dtype=bool)
    while walking.any():
        left, right = value[walking] >> np.uint64(half), value[walking] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        value[walking] = (left << np.uint64(half)) | right
        walking &= value >= count
    return value.astype(np.int64)


def _round_keys(key: tuple[int, ...]) -> list[np.uint64]:
    state = np.uint64(0x9E3779B97F4A7C15)
    for part in key:
        state = _mix(np.array([state ^ np.uint64(part & _MASK64)]))[0]
    return [_mix(np.array([state ^ np.uint64(r + 1)]))[0] for r in range(_ROUNDS)]


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014); arrays wrap around modulo 2⁶⁴ without a warning."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
