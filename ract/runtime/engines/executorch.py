"""ExecuTorch: executes what ``ract export --format executorch`` wrote.

Its Python binding, unlike its C++ library and those of Android and iOS, needs torch for its tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import executorch.kernels.quantized  # noqa: F401 - registers the operators of quantized embeddings
import torch
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
from executorch.runtime import Runtime

from ract.errors import BadInput
from ract.runtime.engines.base import Floats, Ids
from ract.runtime.engines.fixed import FixedDecoder, FixedModel, Numbers, filled_up, muted

FILE_NAME = "model.pte"


class ExecuTorchModel(FixedModel):
    """An exported model, loaded. *threads* (0: ExecuTorch's own choice) are those of all programs in this process.

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
                if threads:
                    _unsafe_reset_threadpool(threads)
                self._program = Runtime.get().load_program(file)
                graphs = {name: self._program.load_method(name) for name in sorted(self._program.method_names)}
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            problem = f"{file} is not a program that ExecuTorch opens ({reason})"
            raise BadInput(problem, "Export the model again") from error
        if self.manifest.kind == "decoder":
            self._decoder = _Decoder(graphs["decode"], graphs["prefill"])
        else:
            self._lengths = {int(name.rpartition("_")[2]): graph for name, graph in graphs.items()}

    def _classified(self, ids: Ids, mask: Ids) -> Floats:
        given = filled_up(ids, mask, list(self._lengths), self.manifest.pad)
        graph: Any = self._lengths[given[0].shape[1]]
        return graph.execute([torch.from_numpy(one).long() for one in given])[0].numpy()


class _Decoder(FixedDecoder):
    """Programs know their inputs by number: token numbers, how many were seen, then keys and values in turn."""

    def __init__(self, decode: Any, prefill: Any) -> None:
        self._decode, self._prefill = decode, prefill
        inputs = [decode.metadata.input_tensor_meta(i).sizes() for i in range(decode.metadata.num_inputs())]
        self._names = [f"{'kv'[i % 2]}_{i // 2}" for i in range(len(inputs) - 2)]
        shapes = dict(zip(self._names, map(tuple, inputs[2:]), strict=True))
        self._caches = {name: torch.zeros(shape) for name, shape in shapes.items()}
        super().__init__(shapes, prefill.metadata.input_tensor_meta(0).sizes()[1])

    def cache(self, name: str) -> Floats:
        """The input *name*, in place."""
        return self._caches[name].numpy()

    def call(self, ids: Numbers, seen: int) -> dict[str, Floats]:
        """The outputs of the graph for one token or for a block, as *ids* are, with *seen* tokens in the cache."""
        graph = self._decode if len(ids) == 1 else self._prefill
        given = [torch.from_numpy(ids).long()[None], torch.tensor([seen]), *self._caches.values()]
        found = graph.execute(given)
        return {name: value.numpy() for name, value in zip(["logits", *self._names], found, strict=True)}
