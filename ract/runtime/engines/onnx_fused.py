"""Decoders written as fused operators: the key-value cache is one buffer that every step writes into, never copied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnxruntime

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_FIRST_CAPACITY = 64  # tokens that a cache has room for at first; it doubles when it is full


@dataclass
class FusedState:
    """The first *tokens* tokens of the buffers *caches* by name, float (rows, heads, capacity, width).

    A step writes behind them, so of several states with the same buffers the one that stepped last owns what follows.
    """

    caches: dict[str, Any]
    tokens: int = 0
    one: _OneToken | None = None

    def reordered(self, rows: Ids) -> FusedState:
        """The state whose row *i* is this one's row ``rows[i]``, in buffers of its own."""
        return FusedState({name: _value(cache.numpy()[rows]) for name, cache in self.caches.items()}, self.tokens)

    def shortened(self, tokens: int) -> FusedState:
        """The state as it was after its first *tokens*, in the same buffers."""
        return FusedState(self.caches, tokens, self.one)


class _OneToken:
    """Steps of one new token a row with the same buffers, bound once: binding anew takes a tenth of a small model's
    step.
    """

    def __init__(self, session: onnxruntime.InferenceSession, caches: dict[str, Any], rows: int) -> None:
        self.session, self.binding = session, session.io_binding()
        self.ids, self.seen = np.zeros((rows, 1), np.int64), np.zeros(rows, np.int32)
        self.total, self.first = np.zeros((), np.int32), np.zeros(1, np.int64)
        self.logits = np.zeros((rows, 1, session.get_outputs()[0].shape[2]), np.float32)
        numbers: dict[str, npt.NDArray[Any]] = {
            "input_ids": self.ids, "seqlens_k": self.seen, "total_sequence_length": self.total, "first": self.first,
        }  # fmt: skip
        for name, array in numbers.items():
            self.binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        shape, place = self.logits.shape, self.logits.ctypes.data
        self.binding.bind_output("logits", "cpu", 0, np.float32, shape, place)
        _bind(self.binding, caches)

    def __call__(self, ids: Ids, total: int) -> Floats:
        """Logits (rows, 1, vocabulary) after *ids* (rows, 1), with which there are *total* tokens."""
        self.ids[:], self.seen[:], self.total[...] = ids, total - 1, total
        self.session.run_with_iobinding(self.binding)
        return self.logits.copy()


class FusedDecoder:
    """Executes a graph of :mod:`ract.export.onnx_decoder` in *session*; *limit*: the most tokens it looks at."""

    def __init__(self, session: onnxruntime.InferenceSession, limit: int) -> None:
        self.session, self.limit = session, limit
        self.shapes = {one.name: one.shape for one in session.get_inputs() if one.name.startswith("input.")}

    def begin(self) -> FusedState:
        """The state before the first token."""
        return FusedState({})

    def scores(self, ids: Ids, state: FusedState, *, last: bool = False) -> tuple[Floats, FusedState]:
        """Logits (rows, new tokens, vocabulary) after every one of *ids* (rows, new tokens), or with *last* after the
        last alone (rows, 1, vocabulary); and the state that has seen them.
        """
        rows, new = ids.shape
        if rows > 1 and new > 1 and state.tokens:  # the operator goes on with one text, or with one token of several
            return self._one_by_one(ids, state, last)
        total = state.tokens + new
        caches = self._with_room(state, rows, total)
        if new == 1:
            one = state.one if caches is state.caches and state.one else _OneToken(self.session, caches, rows)
            return one(ids, total), FusedState(caches, total, one)
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids))
        binding.bind_cpu_input("seqlens_k", np.full(rows, total - 1, np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array(total, np.int32))
        binding.bind_cpu_input("first", np.array([new - 1 if last else 0], np.int64))
        binding.bind_output("logits")
        _bind(binding, caches)
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy(), FusedState(caches, total)

    def _one_by_one(self, ids: Ids, state: FusedState, last: bool) -> tuple[Floats, FusedState]:
        found = []
        for position in range(ids.shape[1]):
            logits, state = self.scores(ids[:, position : position + 1], state)
            found.append(logits)
        return found[-1] if last else np.concatenate(found, 1), state

    def _with_room(self, state: FusedState, rows: int, tokens: int) -> dict[str, Any]:
        """The buffers of *state*, in larger ones where *tokens* do not fit."""
        room = next(iter(state.caches.values())).shape()[2] if state.caches else 0
        if tokens <= room:
            return state.caches
        capacity = max(_FIRST_CAPACITY, room)
        while capacity < tokens:
            capacity *= 2
        capacity = max(tokens, min(capacity, self.limit or capacity))
        grown = {}
        for name, (_, heads, _, width) in self.shapes.items():
            buffer = np.zeros((rows, heads, capacity, width), np.float32)
            if state.caches:
                buffer[:, :, : state.tokens] = state.caches[name].numpy()[:, :, : state.tokens]
            grown[name] = _value(buffer)
        return grown


def _bind(binding: onnxruntime.IOBinding, caches: dict[str, Any]) -> None:
    """The same buffer in and out: the operator then writes in place."""
    for name, cache in caches.items():
        binding.bind_ortvalue_input(name, cache)
        binding.bind_ortvalue_output(name.replace("input.", "output.", 1), cache)


def _value(array: npt.NDArray[Any]) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
