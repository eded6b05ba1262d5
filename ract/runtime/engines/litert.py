"""LiteRT: executes what ``ract export --format litert`` wrote. Needs numpy and ai-edge-litert, no torch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from ract.errors import BadInput
from ract.runtime.engines.base import Floats, Ids
from ract.runtime.engines.fixed import FixedDecoder, FixedModel, Numbers, filled_up, muted

FILE_NAME = "model.tflite"


class LiteRtModel(FixedModel):
    """An exported model, loaded. *threads* of one operation (0: as many as there are processors).

    The graphs are for one text: rows run one after another, and callers of other threads wait. Raises BadInput for a
    damaged or incomplete export.
    """

    def __init__(self, directory: str | Path, *, threads: int = 1, verify: bool = True) -> None:
        super().__init__(directory, verify=verify)
        file = self.directory / FILE_NAME
        if not file.is_file():
            raise BadInput(f"{file} is missing", "Export the model again")
        try:
            with muted():
                self._interpreter = Interpreter(model_path=str(file), num_threads=threads or os.cpu_count())
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"{file} is not a graph that LiteRT opens ({reason})", "Export the model again") from error
        if self.manifest.kind == "decoder":
            self._decoder = _Decoder(self._interpreter)
        else:
            self._lengths = sorted(int(name.rpartition("_")[2]) for name in self._interpreter.get_signature_list())

    def _classified(self, ids: Ids, mask: Ids) -> Floats:
        given = filled_up(ids, mask, self._lengths, self.manifest.pad)
        graph = self._interpreter.get_signature_runner(f"classify_{given[0].shape[1]}")
        return graph(input_ids=given[0], attention_mask=given[1])["logits"]


class _Decoder(FixedDecoder):
    """The cache lies in the inputs of the graph for one token, which is the file's first, and is copied for a block."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        decode = interpreter.get_signature_runner("decode")
        inputs = decode.get_input_details()
        self._inputs = {name: one["index"] for name, one in inputs.items()}
        self._outputs = {name: one["index"] for name, one in decode.get_output_details().items()}
        prefill = interpreter.get_signature_runner("prefill").get_input_details()
        shapes = {name: tuple(int(size) for size in one["shape"]) for name, one in inputs.items()}
        super().__init__(shapes, int(prefill["input_ids"]["shape"][1]))

    def cache(self, name: str) -> Floats:
        """The input *name*, in place; of no use after the next call of a graph."""
        return self._interpreter.tensor(self._inputs[name])()

    def call(self, ids: Numbers, seen: int) -> dict[str, Floats]:
        """The outputs of the graph for one token or for a block, as *ids* are, with *seen* tokens in the cache."""
        given = {"input_ids": ids[None], "seen": np.array([seen], dtype=np.int32)}
        if len(ids) > 1:
            # Not kept: while a runner is alive, the first graph cannot be called.
            graph = self._interpreter.get_signature_runner("prefill")
            return graph(**given, **{name: self.cache(name) for name in self.shapes})
        for name, value in given.items():
            self._interpreter.set_tensor(self._inputs[name], value)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}
