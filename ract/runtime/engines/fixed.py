"""Decoders of fixed shapes (:mod:`ract.export.step_graph`): a cache of so many slots that lies in the graph's inputs.

What is the same for every engine that runs them: which tokens go in at once, and what the cache has to hold before.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from ract.runtime.engines.base import Floats, Ids
from ract.runtime.manifest import Manifest, read_manifest

Numbers = npt.NDArray[np.int32]
_ONE_BY_ONE = 8  # so many tokens take about as long one by one as a whole block


@dataclass
class Memory:
    """The keys and values of one text, which only grow: an array (tokens, heads, width) for each of the graph's caches,
    of which *filled* tokens are written. States of the same text share it.
    """

    caches: dict[str, Floats]
    filled: int = 0

    def beginning(self, tokens: int) -> Memory:
        """A copy of the first *tokens*."""
        copies = {name: np.empty_like(cache) for name, cache in self.caches.items()}
        for name, cache in self.caches.items():
            copies[name][:tokens] = cache[:tokens]
        return Memory(copies, tokens)


@dataclass(frozen=True)
class State:
    """What a decoder has seen: the first *tokens* of the texts whose *memories* these are (none at the beginning)."""

    memories: tuple[Memory, ...] = field(default=())
    tokens: int = 0

    def reordered(self, rows: Ids) -> State:
        """The state whose row *i* is this one's row ``rows[i]``."""
        return State(tuple(self.memories[row] for row in rows), self.tokens)

    def shortened(self, tokens: int) -> State:
        """The state as it was after its first *tokens*."""
        return State(self.memories, tokens)


class FixedDecoder(ABC):
    """A graph for one token and one for a *block* of tokens, for one text; both have inputs of *shapes*, of which those
    named ``k_…`` (heads, width, slots) and ``v_…`` (heads, slots, width) are the cache.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], block: int) -> None:
        self.block = block
        self.shapes = {name: shape for name, shape in shapes.items() if name.startswith(("k_", "v_"))}
        for name in self.shapes:
            self.cache(name).fill(0)  # what is masked is multiplied by 0 all the same
        self._lock = Lock()
        self._loaded: Memory | None = None
        self._written = 0

    @abstractmethod
    def cache(self, name: str) -> Floats:
        """The input *name*, in place; of no use after the next call of a graph."""

    @abstractmethod
    def call(self, ids: Numbers, seen: int) -> dict[str, Floats]:
        """The outputs of the graph for one token or for a block, as *ids* are, with *seen* tokens in the cache."""

    def scores(self, ids: Ids, state: State) -> tuple[Floats, State]:
        """Logits (rows, new, vocabulary) after each of *ids* (rows, new), row after row, and the grown state.

        Callers of other threads wait.
        """
        with self._lock:
            memories = state.memories or tuple(self._memory() for _ in ids)
            found = [self._read(row, one, state.tokens) for row, one in zip(ids, memories, strict=True)]
        grown = State(tuple(memory for _, memory in found), state.tokens + ids.shape[1])
        return np.stack([logits for logits, _ in found]), grown

    def _memory(self) -> Memory:
        """One for a new text."""
        sizes = {n: (d, b, c) if n.startswith("k_") else (c, b, d) for n, (b, c, d) in self.shapes.items()}
        return Memory({name: np.empty(size, dtype=np.float32) for name, size in sizes.items()})

    def _read(self, ids: Ids, memory: Memory, seen: int) -> tuple[Floats, Memory]:
        """Logits (tokens, vocabulary) after each of *ids*, which follow the first *seen* tokens of *memory*, and the
        memory that has them.
        """
        if memory.filled != seen:  # another text went on from there
            memory = memory.beginning(seen)
        logits = []
        while len(ids):
            new = 1 if len(ids) <= _ONE_BY_ONE else min(self.block, len(ids))
            given = np.zeros(1 if new == 1 else self.block, dtype=np.int32)
            given[:new] = ids[:new]  # what is behind them nothing looks at
            self._load(memory)
            found = self.call(given, memory.filled)
            for name, cache in memory.caches.items():
                cache[memory.filled : memory.filled + new] = found[name][:, :new].swapaxes(0, 1)
            memory.filled += new
            logits.append(found["logits"][0, :new])
            ids = ids[new:]
        return np.concatenate(logits), memory

    def _load(self, memory: Memory) -> None:
        """Write into the graph's inputs what they do not have of *memory*."""
        start = self._written if self._loaded is memory else 0
        for name, cache in memory.caches.items():
            view, new = self.cache(name), cache[start : memory.filled]
            if name.startswith("k_"):
                view[:, :, start : memory.filled] = new.transpose(1, 2, 0)
            else:
                view[:, start : memory.filled] = new.swapaxes(0, 1)
        self._loaded, self._written = memory, memory.filled


class FixedModel(ABC):
    """An exported model whose graphs are for one text: rows run one after another, and callers of other threads wait.

    Its constructor sets ``_decoder`` where it is one. Raises BadInput for a damaged manifest or, with *verify*, file.
    """

    _decoder: FixedDecoder

    def __init__(self, directory: str | Path, *, verify: bool) -> None:
        self.directory = Path(directory)
        self.manifest: Manifest = read_manifest(self.directory, verify=verify)
        self._lock = Lock()

    def logits(self, ids: Ids, mask: Ids) -> Floats:
        """A classifier's logits (rows, classes) for *ids* (rows, tokens) where *mask* is 1."""
        with self._lock:
            return np.concatenate([self._classified(*row) for row in zip(ids, mask, strict=True)])

    @abstractmethod
    def _classified(self, ids: Ids, mask: Ids) -> Floats:
        """The logits (1, classes) of one text, *ids* and *mask* (tokens,)."""

    def begin(self, ids: Ids | None = None, mask: Ids | None = None) -> State:
        """The state before the first token."""
        return State()

    def step(self, ids: Ids, state: State) -> tuple[Floats, State]:
        """Logits (rows, vocabulary) after the last of *ids* (rows, new tokens), and the state that has seen them."""
        logits, grown = self.scores(ids, state)
        return logits[:, -1], grown

    def scores(self, ids: Ids, state: State) -> tuple[Floats, State]:
        """As :meth:`step`, with the logits after every one of *ids*: (rows, new tokens, vocabulary)."""
        return self._decoder.scores(ids, state)


@contextmanager
def muted() -> Iterator[None]:
    """Without what native libraries write to the standard error, such as which delegate they made; errors are raised
    all the same.
    """
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def filled_up(ids: Ids, mask: Ids, lengths: Sequence[int], pad: int) -> tuple[Numbers, Numbers]:
    """A text to classify, *ids* and *mask* (tokens,), as the graph for the smallest fitting of *lengths* takes it:
    (1, length) each, filled up with *pad*.
    """
    used = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 1
    length = next(length for length in sorted(lengths) if length >= used)
    numbers, shown = np.full((1, length), pad, dtype=np.int32), np.zeros((1, length), dtype=np.int32)
    numbers[0, :used], shown[0, :used] = ids[:used], mask[:used]
    return numbers, shown
