"""ONNX Runtime: executes what ``ract export --format onnx`` wrote. Needs numpy and onnxruntime, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ract.errors import BadInput
from ract.runtime.engines.onnx_fused import FusedDecoder, FusedState
from ract.runtime.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    import onnxruntime

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_GRAPHS = {
    "decoder": ("decode",),
    "encoder": ("model",),
    "encoder-decoder": ("encoder", "prefill", "decode"),
}
_INPUT, _OUTPUT = "input.", "output."


@dataclass
class State:
    """What an autoregressive model has seen: its caches by name, how many *tokens*, and (for an encoder-decoder) the
    encoder's output and the mask of the source.
    """

    caches: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    tokens: int = 0
    source: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def reordered(self, rows: Ids) -> State:
        """The state whose row *i* is this one's row ``rows[i]``: what beam search goes on with."""
        return State(
            {name: cache[rows] for name, cache in self.caches.items()},
            self.tokens,
            {name: value[rows] for name, value in self.source.items()},
        )

    def shortened(self, tokens: int) -> State:
        """The state as it was after its first *tokens*."""
        caches = {name: cache[:, :, :tokens] for name, cache in self.caches.items()}
        return State(caches, tokens, self.source)


class OnnxModel:
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
        self.sessions = {name: self._session(name, options) for name in _GRAPHS[self.manifest.kind]}
        self.fused: FusedDecoder | None = None
        if self.manifest.kind == "decoder" and any(i.name == "seqlens_k" for i in self.sessions["decode"].get_inputs()):
            self.fused = FusedDecoder(self.sessions["decode"], self.manifest.limit)

    def logits(self, ids: Ids, mask: Ids) -> Floats:
        """A classifier's logits (rows, classes) for *ids* (rows, tokens) where *mask* is 1."""
        return self._run("model", {"input_ids": ids, "attention_mask": mask})["logits"]

    def begin(self, ids: Ids | None = None, mask: Ids | None = None) -> State | FusedState:
        """The state before the first token; of an encoder-decoder after reading the source *ids* where *mask* is 1."""
        if self.fused:
            return self.fused.begin()
        if self.manifest.kind == "decoder":
            return State()
        assert ids is not None and mask is not None
        encoded = self._run("encoder", {"input_ids": ids, "attention_mask": mask})
        return State(source={"encoder_outputs.last_hidden_state": encoded["last_hidden_state"], "attention_mask": mask})

    def step(self, ids: Ids, state: Any) -> tuple[Floats, Any]:
        """Logits (rows, vocabulary) after the last of *ids* (rows, new tokens), and the state that has seen them.

        A decoder takes any number of tokens at once, an encoder-decoder one.
        """
        logits, grown = self.fused.scores(ids, state, last=True) if self.fused else self.scores(ids, state)
        return logits[:, -1], grown

    def scores(self, ids: Ids, state: Any) -> tuple[Floats, Any]:
        """As :meth:`step`, with the logits after every one of *ids*: (rows, new tokens, vocabulary)."""
        if self.fused:
            return self.fused.scores(ids, state)
        rows, new = ids.shape
        feed: dict[str, npt.NDArray[Any]] = dict(state.source)
        if self.manifest.kind == "decoder":
            graph = "decode"
            feed["input_ids"] = ids
            feed["position_ids"] = np.broadcast_to(np.arange(state.tokens, state.tokens + new), (rows, new)).copy()
            feed["attention_mask"] = np.ones((rows, state.tokens + new), dtype=np.int64)
        else:
            graph = "decode" if state.caches else "prefill"
            feed["decoder_input_ids"] = ids
        caches = state.caches or self._empty(graph, rows)
        found = self._run(graph, feed | {_INPUT + name: cache for name, cache in caches.items()})
        grown = {name.removeprefix(_OUTPUT): value for name, value in found.items() if "past_key_values" in name}
        kept = {name: grown.get(name, cache) for name, cache in caches.items()} | grown
        return found["logits"], State(kept, state.tokens + new, state.source)

    def _empty(self, graph: str, rows: int) -> dict[str, npt.NDArray[Any]]:
        """Caches of no tokens, for the inputs that *graph* has for them."""
        found = {}
        for given in self.sessions[graph].get_inputs():
            if given.name.startswith(_INPUT):
                _, heads, _, width = given.shape
                found[given.name.removeprefix(_INPUT)] = np.zeros((rows, int(heads), 0, int(width)), dtype=np.float32)
        return found

    def _run(self, graph: str, feed: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        session = self.sessions[graph]
        wanted = {one.name for one in session.get_inputs()}
        names = [one.name for one in session.get_outputs()]
        outputs = session.run(names, {name: value for name, value in feed.items() if name in wanted})
        return dict(zip(names, outputs, strict=True))

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
