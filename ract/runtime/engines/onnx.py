"""ONNX Runtime: executes what ``ract export --format onnx`` wrote. Needs numpy and onnxruntime, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ract.errors import BadInput
from ract.runtime.engines.base import Floats, Ids
from ract.runtime.engines.cached import GRAPHS, Arrays, CachedGraphs
from ract.runtime.engines.onnx_fused import FusedDecoder
from ract.runtime.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    import onnxruntime


class OnnxModel(CachedGraphs):
    """An exported model, loaded. *threads* of one operation (0: ONNX Runtime's own choice).

    Raises BadInput for a damaged or incomplete export.
    """

    def __init__(self, directory: str | Path, *, threads: int = 1, verify: bool = True) -> None:
        self.directory = Path(directory)
        self.manifest: Manifest = read_manifest(self.directory, verify=verify)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if self.manifest.members > 1 and threads > 1:  # members side by side, each on a processor of its own
            options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
            options.inter_op_num_threads = min(threads, self.manifest.members)
            options.intra_op_num_threads = max(1, threads // self.manifest.members)
        options.log_severity_level = 4  # what goes wrong is raised; it need not be printed too
        # Small models: what an arena would keep for the next run costs more memory than it saves time.
        options.enable_cpu_mem_arena = False
        self.sessions = {name: self._session(name, options) for name in GRAPHS[self.manifest.kind]}
        self._shapes = {name: _shapes(session) for name, session in self.sessions.items()}
        self._outputs = {name: [one.name for one in session.get_outputs()] for name, session in self.sessions.items()}
        self.fused: FusedDecoder | None = None
        if "seqlens_k" in self._shapes.get("decode", {}) and self.manifest.kind == "decoder":
            self.fused = FusedDecoder(self.sessions["decode"], self.manifest.limit)

    def shapes(self, graph: str) -> dict[str, list[int | None]]:
        """The inputs of *graph*, with their shapes (None: any size)."""
        return self._shapes[graph]

    def run(self, graph: str, feed: Arrays) -> Arrays:
        """The outputs of *graph* for *feed*, which has exactly its inputs."""
        names = self._outputs[graph]
        return dict(zip(names, self.sessions[graph].run(names, feed), strict=True))

    def begin(self, ids: Ids | None = None, mask: Ids | None = None) -> Any:
        """The state before the first token; of an encoder-decoder after reading the source *ids* where *mask* is 1."""
        return self.fused.begin() if self.fused else super().begin(ids, mask)

    def step(self, ids: Ids, state: Any) -> tuple[Floats, Any]:
        """Logits (rows, vocabulary) after the last of *ids* (rows, new tokens), and the state that has seen them.

        A decoder takes any number of tokens at once, an encoder-decoder one.
        """
        if self.fused is None:
            return super().step(ids, state)
        logits, grown = self.fused.scores(ids, state, last=True)
        return logits[:, -1], grown

    def scores(self, ids: Ids, state: Any) -> tuple[Floats, Any]:
        """As :meth:`step`, with the logits after every one of *ids*: (rows, new tokens, vocabulary)."""
        return self.fused.scores(ids, state) if self.fused else super().scores(ids, state)

    def _session(self, name: str, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        import onnxruntime

        file = self.directory / f"{name}.onnx"
        if not file.is_file():
            raise BadInput(f"{file} is missing", "Export the model again")
        try:
            return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own for every kind of damage
            reason = " ".join(str(error).split())[:200]
            raise BadInput(
                f"{file} is not a graph that ONNX Runtime opens ({reason})", "Export the model again"
            ) from error


def _shapes(session: onnxruntime.InferenceSession) -> dict[str, list[int | None]]:
    return {one.name: [size if isinstance(size, int) else None for size in one.shape] for one in session.get_inputs()}
