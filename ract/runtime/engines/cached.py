"""Graphs as ``transformers.exporters`` writes them: caches go in as ``input.past_key_values…`` and come out as
``output.past_key_values…``. What is the same for every engine that runs them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ract.runtime.engines.base import Floats, Ids
from ract.runtime.manifest import Manifest

GRAPHS = {
    "decoder": ("decode",),
    "encoder": ("model",),
    "encoder-decoder": ("encoder", "prefill", "decode"),
}
_INPUT, _OUTPUT = "input.", "output."
Arrays = dict[str, npt.NDArray[Any]]


@dataclass
class State:
    """What an autoregressive model has seen: its caches by name, how many *tokens*, and (for an encoder-decoder) the
    encoder's output and the mask of the source.
    """

    caches: Arrays = field(default_factory=dict)
    tokens: int = 0
    source: Arrays = field(default_factory=dict)

    def reordered(self, rows: Ids) -> State:
        """The state whose row *i* is this one's row ``rows[i]``: what beam search goes on with."""
        return State(
            {name: cache[rows] for name, cache in self.caches.items()},
            self.tokens,
            {name: value[rows] for name, value in self.source.items()},
        )

    def shortened(self, tokens: int) -> State:
        """The state as it was after its first *tokens*."""
        caches = {n: cache if _of_the_source(n) else cache[:, :, :tokens] for n, cache in self.caches.items()}
        return State(caches, tokens, self.source) if tokens else State(source=self.source)


class CachedGraphs(ABC):
    """An exported model whose caches are arrays that go through the graphs; an engine adds how one graph runs."""

    manifest: Manifest

    @abstractmethod
    def shapes(self, graph: str) -> dict[str, list[int | None]]:
        """The inputs of *graph*, with their shapes (None: any size)."""

    @abstractmethod
    def run(self, graph: str, feed: Arrays) -> Arrays:
        """The outputs of *graph* for *feed*, which has exactly its inputs."""

    def logits(self, ids: Ids, mask: Ids) -> Floats:
        """A classifier's logits (rows, classes) for *ids* (rows, tokens) where *mask* is 1."""
        return self._run("model", {"input_ids": ids, "attention_mask": mask})["logits"]

    def begin(self, ids: Ids | None = None, mask: Ids | None = None) -> State:
        """The state before the first token; of an encoder-decoder after reading the source *ids* where *mask* is 1."""
        if self.manifest.kind == "decoder":
            return State()
        assert ids is not None and mask is not None
        encoded = self._run("encoder", {"input_ids": ids, "attention_mask": mask})
        return State(source={"encoder_outputs.last_hidden_state": encoded["last_hidden_state"], "attention_mask": mask})

    def step(self, ids: Ids, state: State) -> tuple[Floats, State]:
        """Logits (rows, vocabulary) after the last of *ids* (rows, new tokens), and the state that has seen them.

        A decoder takes any number of tokens at once, an encoder-decoder one.
        """
        logits, grown = self.scores(ids, state)
        return logits[:, -1], grown

    def scores(self, ids: Ids, state: State) -> tuple[Floats, State]:
        """As :meth:`step`, with the logits after every one of *ids*: (rows, new tokens, vocabulary)."""
        rows, new = ids.shape
        feed = dict(state.source)
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
        # A graph need not return what it leaves as it is: the keys and values of the source.
        kept = {name: grown.get(name, cache) for name, cache in caches.items()} | grown
        return found["logits"], State(kept, state.tokens + new, state.source)

    def _empty(self, graph: str, rows: int) -> Arrays:
        """Caches of no tokens, for the inputs that *graph* has for them."""
        found = {}
        for name, shape in self.shapes(graph).items():
            if name.startswith(_INPUT):
                _, heads, _, width = shape
                assert heads is not None and width is not None
                found[name.removeprefix(_INPUT)] = np.zeros((rows, heads, 0, width), dtype=np.float32)
        return found

    def _run(self, graph: str, feed: Arrays) -> Arrays:
        wanted = self.shapes(graph)
        return self.run(graph, {name: value for name, value in feed.items() if name in wanted})


def _of_the_source(name: str) -> bool:
    return "cross_attention" in name
