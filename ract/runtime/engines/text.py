"""Exported models on text: a decoder, a classifier and a translator, on top of any engine's graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ract.data.batches import by_length, padded
from ract.errors import BadInput
from ract.runtime.beam import search
from ract.runtime.engines.base import Graphs, State, open_graphs
from ract.runtime.sampling import softmax
from ract.runtime.tokens import LONGEST, Tokens


class ExportedDecoder:
    """An exported model that continues texts. Raises BadInput as the engine does, and for another kind."""

    def __init__(self, directory: Path, *, threads: int = 1) -> None:
        self.directory = directory
        self.model = opened(directory, "decoder", "continues no text", threads)
        self.tokens = Tokens(directory)
        manifest = self.model.manifest
        self.limit = manifest.limit or None
        self.ends = set(manifest.ends)

    def encode(self, text: str) -> list[int]:
        """The numbers of *text* as the model reads it, of an empty one the token that begins a text."""
        numbers = self.tokens.encode(text)
        if not numbers:
            if self.model.manifest.begin is None:
                problem = f"{self.directory} has no token that begins a text"
                raise BadInput(problem, "Give a prompt that is not empty")
            numbers = [self.model.manifest.begin]
        return numbers

    def decode(self, numbers: list[int]) -> str:
        """The text of *numbers*."""
        return self.tokens.decode(numbers)

    def next_logits(self, numbers: list[int], seen: int, cache: State | None) -> tuple[npt.NDArray[np.float32], State]:
        """Logits ``(vocab,)`` after *numbers*, which follow what is in *cache* (None: nothing), and the new cache."""
        logits, state = self.model.step(np.array([numbers], dtype=np.int64), cache or self.model.begin())
        return logits[0], state


class ExportedClassifier:
    """An exported classifier."""

    def __init__(self, directory: Path, *, threads: int = 1) -> None:
        self.model = opened(directory, "encoder", "classifies no texts", threads)
        self.tokens = Tokens(directory)
        self.labels = list(self.model.manifest.labels)
        self.limit = self.model.manifest.limit or LONGEST

    def windows(self, text: str, stride: int) -> list[list[int]]:
        """*text* in framed pieces of at most the limit's tokens, which overlap by *stride* tokens."""
        return self.tokens.windows(text, self.limit, stride)

    def probabilities(self, rows: Sequence[Sequence[int]], batch_size: int) -> npt.NDArray[np.float64]:
        """The probability of every class for texts given as token numbers: ``(texts, classes)``, in their order."""
        found = np.zeros((len(rows), len(self.labels)))
        for chosen in by_length(rows, batch_size):
            ids, mask = padded([rows[i] for i in chosen], self.model.manifest.pad)
            found[chosen] = softmax(self.model.logits(ids, mask).astype(np.float64))
        return found


class ExportedTranslator:
    """An exported encoder-decoder."""

    def __init__(self, directory: Path, *, threads: int = 1) -> None:
        self.model = opened(directory, "encoder-decoder", "translates no texts", threads)
        self.tokens = Tokens(directory)
        self.limit = self.model.manifest.limit or LONGEST
        self.target_language = self.model.manifest.target_language

    def length(self, text: str) -> int:
        """How many tokens *text* has, framed."""
        return len(self.tokens.encode(text))

    def translate(
        self, texts: Sequence[str], *, num_beams: int, max_new_tokens: int | None, batch_size: int
    ) -> list[str]:
        """The translations of *texts*, in their order."""
        manifest = self.model.manifest
        rows = [self.tokens.windows(text, self.limit)[0] for text in texts]
        found = [""] * len(texts)
        for chosen in by_length(rows, batch_size):
            ids, mask = padded([rows[i] for i in chosen], manifest.pad)
            new = max_new_tokens or 2 * ids.shape[1] + 16
            outputs = search(
                self.model,
                self.model.begin(ids, mask),
                len(chosen),
                start=manifest.start or 0,
                ends=manifest.ends,
                first=manifest.first,
                last=manifest.last,
                never=manifest.never,
                num_beams=num_beams,
                max_new_tokens=min(new, self.limit - 1),
            )
            for i, output in zip(chosen, outputs, strict=True):
                found[i] = self.tokens.decode(output).strip()
        return found


def opened(directory: Path, kind: str, lacks: str, threads: int) -> Graphs:
    """The exported model in *directory*; BadInput, saying that it *lacks* what is asked, when it is of another kind."""
    model = open_graphs(directory, threads=threads)
    if model.manifest.kind != kind:
        raise BadInput(f"{directory} is an exported {model.manifest.kind}, which {lacks}", f"Give an exported {kind}")
    return model
