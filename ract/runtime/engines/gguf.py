"""llama.cpp: executes what ``ract export --format gguf`` wrote. Needs numpy and llama-cpp-python, no torch.

llama.cpp reads files without much suspicion, so only one whose hash stands in the manifest is opened.
"""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from ract.errors import BadInput, RactError
from ract.runtime.engines.base import Floats, Ids
from ract.runtime.manifest import Manifest, read_manifest

FILE_NAME = "model.gguf"
_CHUNK = 128  # tokens read at once: longer chunks need more memory, and are no faster on a CPU
_FIRST_ROOM = 512  # tokens that the cache has room for at first


@dataclass(frozen=True)
class State:
    """The tokens that were *written* (rows, tokens). The cache itself stays in the engine, which reads again what it
    does not hold; going on from the last state costs nothing extra.
    """

    written: Ids

    @property
    def tokens(self) -> int:
        """How many tokens have been seen."""
        return self.written.shape[1]

    def reordered(self, rows: Ids) -> State:
        """The state whose row *i* is this one's row ``rows[i]``."""
        return State(self.written[rows])

    def shortened(self, tokens: int) -> State:
        """The state as it was after its first *tokens*."""
        return State(self.written[:, :tokens])


class GgufModel:
    """An exported decoder, loaded, with one cache: rows are read one after another. *threads* of one operation (0: one
    for each core). May be shared by threads, which then wait for each other.

    Raises BadInput for a damaged or incomplete export.
    """

    def __init__(self, directory: str | Path, *, threads: int = 1, verify: bool = True) -> None:
        self.directory = Path(directory)
        self.manifest: Manifest = read_manifest(self.directory, verify=verify)
        self.file = LlamaFile(self.directory / FILE_NAME, mapped=self.manifest.precision != "int4")
        self.threads = threads or os.cpu_count() or 1
        self._context: _Context | None = None
        self._held: Ids = np.zeros(0, dtype=np.int64)  # the tokens whose keys and values are in the cache
        self._lock = threading.Lock()

    def logits(self, ids: Ids, mask: Ids) -> Floats:
        """GGUF exports are decoders: raises BadInput."""
        raise BadInput(f"{self.directory} is a decoder, which classifies no texts", "Give an exported encoder")

    def begin(self, ids: Ids | None = None, mask: Ids | None = None) -> State:
        """The state before the first token."""
        return State(np.zeros((0, 0), dtype=np.int64))

    def step(self, ids: Ids, state: State) -> tuple[Floats, State]:
        """Logits (rows, vocabulary) after the last of *ids* (rows, new tokens), and the state that has seen them."""
        grown = State(ids if state.tokens == 0 else np.concatenate([state.written, ids], 1))
        return np.concatenate([self._read(row, 1) for row in grown.written]), grown

    def scores(self, ids: Ids, state: State) -> tuple[Floats, State]:
        """As :meth:`step`, with the logits after every one of *ids*: (rows, new tokens, vocabulary)."""
        grown = State(ids if state.tokens == 0 else np.concatenate([state.written, ids], 1))
        return np.stack([self._read(row, ids.shape[1]) for row in grown.written]), grown

    def _read(self, tokens: Ids, wanted: int) -> Floats:
        """Logits (*wanted*, vocabulary) after the last *wanted* of *tokens*, all of which are in the cache then."""
        with self._lock:
            context = self._room_for(len(tokens))
            first = len(tokens) - wanted  # whose logits are asked for
            limit = min(len(self._held), first)
            differs = np.flatnonzero(self._held[:limit] != tokens[:limit])
            kept = int(differs[0]) if len(differs) else limit
            context.forget(kept)
            self._held = tokens[:kept]
            found = []
            for start in range(kept, len(tokens), _CHUNK):
                chunk = tokens[start : start + _CHUNK]
                found.append(context.read(chunk, start, min(len(chunk), max(0, start + len(chunk) - first))))
                self._held = tokens[: start + len(chunk)]
            return np.concatenate(found)

    def _room_for(self, tokens: int) -> _Context:
        """The cache, a new and larger one where *tokens* find no room in it."""
        if self._context is None or tokens > self._context.room:
            room = max(_FIRST_ROOM, 2 * self._context.room if self._context else 0, tokens)
            if self.manifest.limit:
                room = max(min(room, self.manifest.limit), tokens)
            self._context = None  # its memory goes first
            self._held = self._held[:0]
            self._context = _Context(self.file, room, self.threads, exact=self.manifest.precision == "fp32")
        return self._context


class LlamaFile:
    """A GGUF file, opened; with *vocab_only* its tokenizer alone. *mapped* saves memory, but not with 4-bit weights:
    llama.cpp rearranges a copy of them. Raises BadInput when llama.cpp refuses the file.
    """

    def __init__(self, file: Path, *, vocab_only: bool = False, mapped: bool = True) -> None:
        if not file.is_file():
            raise BadInput(f"{file} is missing", "Export the model again")
        llama_cpp.llama_log_set(_logged, None)
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers, parameters.vocab_only = 0, vocab_only
        if not mapped:
            parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        self.pointer: Any = llama_cpp.llama_model_load_from_file(os.fsencode(file), parameters)
        if not self.pointer:
            raise BadInput(f"{file} is not a model that llama.cpp opens ({_last_error})", "Export the model again")
        weakref.finalize(self, llama_cpp.llama_model_free, self.pointer)
        self.vocabulary: Any = llama_cpp.llama_model_get_vocab(self.pointer)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(self.vocabulary)


class _Context:
    """llama.cpp's cache of one sequence of at most *room* tokens; *exact* keeps it in 32 bits."""

    def __init__(self, file: LlamaFile, room: int, threads: int, *, exact: bool) -> None:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = room, _CHUNK, _CHUNK
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.no_perf = True
        if exact:
            parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
            parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.file, self.room = file, room  # the file stays open as long as this does
        self.pointer: Any = llama_cpp.llama_init_from_model(file.pointer, parameters)
        if not self.pointer:
            raise RactError(f"llama.cpp has no memory for {room} tokens", "Close other programs or use a smaller model")
        weakref.finalize(self, llama_cpp.llama_free, self.pointer)
        self.batch: Any = llama_cpp.llama_batch_init(_CHUNK, 0, 1)
        weakref.finalize(self, llama_cpp.llama_batch_free, self.batch)

    def forget(self, kept: int) -> None:
        """Leave the first *kept* tokens in the cache."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.pointer), 0, kept, -1)

    def read(self, tokens: Ids, start: int, wanted: int) -> npt.NDArray[np.float32]:
        """Read *tokens*, the first of which has number *start*; logits (wanted, vocabulary) after the last *wanted*."""
        batch, count = self.batch, len(tokens)
        batch.n_tokens = count
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = int(token), start + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = place >= count - wanted
        failure = llama_cpp.llama_decode(self.pointer, batch)
        if failure:
            raise RactError(f"llama.cpp failed to read {count} tokens (error {failure})", "Try a shorter text")
        shape = (self.file.vocab_size,)
        rows = [llama_cpp.llama_get_logits_ith(self.pointer, place) for place in range(count - wanted, count)]
        found = np.empty((wanted, *shape), dtype=np.float32)
        for row, logits in enumerate(rows):
            found[row] = np.ctypeslib.as_array(logits, shape=shape)
        return found


_ERROR = 4  # GGML_LOG_LEVEL_ERROR of ggml.h
_last_error = "no reason given"


@llama_cpp.llama_log_callback
def _logged(level: int, text: bytes, data: object) -> None:
    """What llama.cpp logs goes nowhere, but for its last error. Kept here, as the library may call it at any time."""
    global _last_error  # noqa: PLW0603 - the library has one log for the whole process
    if level == _ERROR:
        _last_error = text.decode(errors="replace").strip()
