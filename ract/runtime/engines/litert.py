"""LiteRT: executes what ``ract export --format litert`` wrote. Needs numpy and ai-edge-litert, no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from ract.errors import BadInput
from ract.runtime.engines.base import Floats, Ids
from ract.runtime.manifest import Manifest, read_manifest

FILE_NAME = "model.tflite"
_ONE_BY_ONE = 8  # so many tokens take about as long one by one as a whole block


@dataclass
class _Memory:
    """The keys and values of one text, which only grow: an array (tokens, heads, width) for each of the graph's caches,
    of which *filled* tokens are written. States of the same text share it.
    """

    caches: dict[str, Floats]
    filled: int = 0

    def beginning(self, tokens: int) -> _Memory:
        """A copy of the first *tokens*."""
        copies = {name: np.empty_like(cache) for name, cache in self.caches.items()}
        for name, cache in self.caches.items():
            copies[name][:tokens] = cache[:tokens]
        return _Memory(copies, tokens)


@dataclass(frozen=True)
class State:
    """What a decoder has seen: the first *tokens* of the texts whose *memories* these are (none at the beginning)."""

    memories: tuple[_Memory, ...] = field(default=())
    tokens: int = 0

    def reordered(self, rows: Ids) -> State:
        """The state whose row *i* is this one's row ``rows[i]``."""
        return State(tuple(self.memories[row] for row in rows), self.tokens)

    def shortened(self, tokens: int) -> State:
        """The state as it was after its first *tokens*."""
        return State(self.memories, tokens)


class LiteRtModel:
    """An exported model, loaded. *threads* of one operation (0: as many as there are processors).

    The graphs are for one text: rows run one after another, and callers of other threads wait. Raises BadInput for a
    damaged or incomplete export.
    """

    def __init__(self, directory: str | Path, *, threads: int = 1, verify: bool = True) -> None:
        self.directory = Path(directory)
        self.manifest: Manifest = read_manifest(self.directory, verify=verify)
        file = self.directory / FILE_NAME
        if not file.is_file():
            raise BadInput(f"{file} is missing", "Export the model again")
        try:
            self._interpreter = Interpreter(model_path=str(file), num_threads=threads or os.cpu_count())
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"{file} is not a graph that LiteRT opens ({reason})", "Export the model again") from error
        self._lock = Lock()
        if self.manifest.kind == "decoder":
            self._decoder = _Decoder(self._interpreter)
        else:
            self._lengths = sorted(int(name.rpartition("_")[2]) for name in self._interpreter.get_signature_list())

    def logits(self, ids: Ids, mask: Ids) -> Floats:
        """A classifier's logits (rows, classes) for *ids* (rows, tokens) where *mask* is 1."""
        with self._lock:
            return np.concatenate([self._classified(*row) for row in zip(ids, mask, strict=True)])

    def _classified(self, ids: Ids, mask: Ids) -> Floats:
        used = int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 1
        length = next(length for length in self._lengths if length >= used)
        given = np.full((2, 1, length), self.manifest.pad, dtype=np.int32)
        given[1] = 0
        given[:, 0, :used] = ids[:used], mask[:used]
        graph = self._interpreter.get_signature_runner(f"classify_{length}")
        return graph(input_ids=given[0], attention_mask=given[1])["logits"]

    def begin(self, ids: Ids | None = None, mask: Ids | None = None) -> State:
        """The state before the first token."""
        return State()

    def step(self, ids: Ids, state: State) -> tuple[Floats, State]:
        """Logits (rows, vocabulary) after the last of *ids* (rows, new tokens), and the state that has seen them."""
        logits, grown = self.scores(ids, state)
        return logits[:, -1], grown

    def scores(self, ids: Ids, state: State) -> tuple[Floats, State]:
        """As :meth:`step`, with the logits after every one of *ids*: (rows, new tokens, vocabulary)."""
        with self._lock:
            memories = state.memories or tuple(self._decoder.memory() for _ in ids)
            found = [self._decoder.read(row, one, state.tokens) for row, one in zip(ids, memories, strict=True)]
        return np.stack([logits for logits, _ in found]), State(
            tuple(memory for _, memory in found), state.tokens + ids.shape[1]
        )


class _Decoder:
    """The two graphs of a decoder, and the cache that lies in the first one's inputs between two calls."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        decode, prefill = (interpreter.get_signature_runner(name) for name in ("decode", "prefill"))
        self._inputs = {name: one["index"] for name, one in decode.get_input_details().items()}
        self._outputs = {name: one["index"] for name, one in decode.get_output_details().items()}
        self._shapes = {name: tuple(one["shape"]) for name, one in decode.get_input_details().items()}
        self._block = int(prefill.get_input_details()["input_ids"]["shape"][1])
        self._names = [name for name in self._inputs if name.startswith(("k_", "v_"))]
        for name in self._names:
            self._cache(name).fill(0)  # what is masked is multiplied by 0 all the same
        self._loaded: _Memory | None = None
        self._written = 0

    def memory(self) -> _Memory:
        """One for a new text."""
        shapes = {name: self._shapes[name] for name in self._names}
        return _Memory({n: np.empty(_by_tokens(n, shape), dtype=np.float32) for n, shape in shapes.items()})

    def read(self, ids: Ids, memory: _Memory, seen: int) -> tuple[Floats, _Memory]:
        """Logits (tokens, vocabulary) after each of *ids*, which follow the first *seen* tokens of *memory*, and the
        memory that has them.
        """
        if memory.filled != seen:  # another text went on from there
            memory = memory.beginning(seen)
        logits = []
        while len(ids):
            new = 1 if len(ids) <= _ONE_BY_ONE else min(self._block, len(ids))
            self._load(memory)
            found = self._step(int(ids[0]), memory.filled) if new == 1 else self._blockwise(ids[:new], memory.filled)
            for name in self._names:
                memory.caches[name][memory.filled : memory.filled + new] = found[name][0, :, :new].swapaxes(0, 1)
            memory.filled += new
            logits.append(found["logits"][0, :new])
            ids = ids[new:]
        return np.concatenate(logits), memory

    def _step(self, token: int, seen: int) -> dict[str, Floats]:
        self._interpreter.set_tensor(self._inputs["input_ids"], np.array([[token]], dtype=np.int32))
        self._interpreter.set_tensor(self._inputs["seen"], np.array([seen], dtype=np.int32))
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}

    def _blockwise(self, ids: Ids, seen: int) -> dict[str, Floats]:
        given = np.zeros((1, self._block), dtype=np.int32)
        given[0, : len(ids)] = ids  # what is behind them nothing looks at
        caches = {name: self._cache(name) for name in self._names}
        # Not kept: while a runner is alive, the first graph cannot be called.
        graph = self._interpreter.get_signature_runner("prefill")
        return graph(input_ids=given, seen=np.array([seen], dtype=np.int32), **caches)

    def _load(self, memory: _Memory) -> None:
        """Write into the graph's inputs what they do not have of *memory*."""
        start = self._written if self._loaded is memory else 0
        for name in self._names:
            view, new = self._cache(name)[0], memory.caches[name][start : memory.filled]
            if name.startswith("k_"):
                view[:, :, start : memory.filled] = new.transpose(1, 2, 0)
            else:
                view[:, start : memory.filled] = new.swapaxes(0, 1)
        self._loaded, self._written = memory, memory.filled

    def _cache(self, name: str) -> Floats:
        """The graph's input *name*, in place; of no use after the next call."""
        return self._interpreter.tensor(self._inputs[name])()


def _by_tokens(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(tokens, heads, width) of a cache that the graph has as (1, heads, width, tokens), or values with tokens before
    width.
    """
    _, heads, a, b = shape
    return (b, heads, a) if name.startswith("k_") else (a, heads, b)
