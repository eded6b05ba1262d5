"""What every engine of exported models offers, and which module serves which format."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from ract.errors import needs_extra
from ract.runtime.manifest import Manifest, read_manifest

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

# Format → the class in the module of that name, and the extra that installs what it needs (None: the base install).
_ENGINES: dict[str, tuple[str, str | None]] = {
    "onnx": ("OnnxModel", None),
    "openvino": ("OpenVinoModel", "openvino"),
    "gguf": ("GgufModel", "gguf"),
    "ctranslate2": ("CTranslate2Model", "ctranslate2"),
    "litert": ("LiteRtModel", "litert"),
    "executorch": ("ExecuTorchModel", "executorch"),
}


class State(Protocol):
    """What an autoregressive model has seen: so many *tokens*, and for an encoder-decoder the source."""

    tokens: int

    def reordered(self, rows: Ids) -> Self:
        """The state whose row *i* is this one's row ``rows[i]``: what beam search goes on with."""

    def shortened(self, tokens: int) -> Self:
        """The state as it was after its first *tokens*."""


class Graphs(Protocol):
    """An exported model, loaded by its engine: token numbers in, logits out."""

    manifest: Manifest

    def logits(self, ids: Ids, mask: Ids) -> Floats:
        """A classifier's logits (rows, classes) for *ids* (rows, tokens) where *mask* is 1."""

    def begin(self, ids: Ids | None = None, mask: Ids | None = None) -> Any:
        """The state before the first token; of an encoder-decoder after reading the source *ids* where *mask* is 1."""

    def step(self, ids: Ids, state: Any) -> tuple[Floats, Any]:
        """Logits (rows, vocabulary) after the last of *ids* (rows, new tokens), and the state that has seen them."""

    def scores(self, ids: Ids, state: Any) -> tuple[Floats, Any]:
        """As :meth:`step`, with the logits after every one of *ids*: (rows, new tokens, vocabulary)."""


def open_graphs(directory: Path, *, threads: int = 1, verify: bool = True) -> Graphs:
    """Load the exported model in *directory* with the engine its manifest names, with *threads* for one operation.

    *verify* compares every file with its hash first. Raises BadInput for a damaged export, MissingExtra where the
    engine is not installed.
    """
    engine = read_manifest(directory, verify=False).engine
    name, extra = _ENGINES[engine]
    with needs_extra(f"Running a model exported to {engine}", extra or "train"):
        found = getattr(importlib.import_module(f"ract.runtime.engines.{engine}"), name)
        return found(directory, threads=threads, verify=verify)
