"""OpenVINO: executes what ``ract export --format openvino`` wrote. Needs numpy and openvino, no torch."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ract.errors import BadInput
from ract.runtime.engines.cached import GRAPHS, Arrays, CachedGraphs
from ract.runtime.manifest import Manifest, read_manifest

# OpenVINO and NNCF send reports of their use over the network, from the import on, where this package can be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402

if TYPE_CHECKING:
    from openvino import CompiledModel, InferRequest

_SETTINGS: dict[str, Any] = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,  # two processes would share one core
    "INFERENCE_PRECISION_HINT": "f32",  # else bf16 where there is hardware for it, and other answers than elsewhere
    # Activations in 8 bits to meet weights in 8 or 4: classifiers run twice as fast, and the loss moves by 1e-4.
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32,
}


class OpenVinoModel(CachedGraphs):
    """An exported model, loaded. *threads* of one operation (0: OpenVINO's own choice).

    Raises BadInput for a damaged or incomplete export.
    """

    def __init__(self, directory: str | Path, *, threads: int = 1, verify: bool = True) -> None:
        self.directory = Path(directory)
        self.manifest: Manifest = read_manifest(self.directory, verify=verify)
        core = openvino.Core()
        settings = _SETTINGS | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        self._compiled = {name: self._compile(core, name, settings) for name in GRAPHS[self.manifest.kind]}
        self._shapes = {name: _shapes(graph) for name, graph in self._compiled.items()}
        self._requests = threading.local()  # a request serves one caller at a time

    def shapes(self, graph: str) -> dict[str, list[int | None]]:
        """The inputs of *graph*, with their shapes (None: any size)."""
        return self._shapes[graph]

    def run(self, graph: str, feed: Arrays) -> Arrays:
        """The outputs of *graph* for *feed*, which has exactly its inputs."""
        found = self._request(graph).infer(feed, share_inputs=True, share_outputs=False)
        return {port.get_any_name(): value for port, value in found.items()}

    def _request(self, graph: str) -> InferRequest:
        if not hasattr(self._requests, graph):
            setattr(self._requests, graph, self._compiled[graph].create_infer_request())
        return getattr(self._requests, graph)

    def _compile(self, core: openvino.Core, name: str, settings: dict[str, Any]) -> CompiledModel:
        file = self.directory / f"{name}.xml"
        for needed in (file, file.with_suffix(".bin")):
            if not needed.is_file():
                raise BadInput(f"{needed} is missing", "Export the model again")
        try:
            return core.compile_model(core.read_model(file), "CPU", settings)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"{file} is not a graph that OpenVINO opens ({reason})", "Export the model again") from error


def _shapes(graph: CompiledModel) -> dict[str, list[int | None]]:
    """Name and shape of every input of *graph*; None for a size that is free."""
    return {
        port.get_any_name(): [None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()]
        for port in graph.inputs
    }
