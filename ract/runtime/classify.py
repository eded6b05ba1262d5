"""Give texts their classes: what ``ract classify`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ract.errors import BadInput
from ract.runtime.open import open_engine
from ract.runtime.tokens import mended


@dataclass(frozen=True)
class Classified:
    """One text's class: *label* is the likeliest of *probabilities*; *truncated*: the text's end was not read."""

    label: str
    probabilities: dict[str, float]
    truncated: bool

    @property
    def probability(self) -> float:
        """The probability of *label*."""
        return self.probabilities[self.label]


class ClassifyingEngine(Protocol):
    """An engine that classifies texts: a model and its tokenizer."""

    limit: int
    labels: list[str]

    def windows(self, text: str, stride: int) -> list[list[int]]:
        """*text* in framed pieces of at most the limit's tokens, which overlap by *stride* tokens."""

    def probabilities(self, rows: Sequence[Sequence[int]], batch_size: int) -> npt.NDArray[np.float64]:
        """The probability of every class for texts given as token numbers: ``(texts, classes)``, in their order."""


class TextClassifier:
    """A loaded classifier, for callers with more than one text. *path* is a model directory, an exported model or a
    finished run; *options* are those of :func:`ract.runtime.open.open_engine`.

    Raises BadInput as loading does.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.path = Path(path)
        self.engine: ClassifyingEngine = open_engine(path, "Classifier", "classify", **options)
        self.limit, self.labels = self.engine.limit, self.engine.labels

    def classify(self, texts: Sequence[str], *, batch_size: int = 32, windows: bool = False) -> list[Classified]:
        """The class of every text, in their order; texts of like length share a batch.

        A text longer than the model was made for is cut; with *windows* it is read in overlapping windows, whose
        probabilities are averaged.
        """
        if batch_size < 1:
            raise BadInput(f"batch_size = {batch_size} is no number of texts", "Give 1 or more")
        rows: list[Sequence[int]] = []
        owners: list[int] = []
        cut = [False] * len(texts)
        for number, text in enumerate(texts):
            pieces = self.engine.windows(mended(text), self.limit // 4 if windows else 0)
            if not windows:
                cut[number] = len(pieces) > 1
                pieces = pieces[:1]
            rows += pieces
            owners += [number] * len(pieces)
        if not rows:
            return []
        found = self.engine.probabilities(rows, batch_size)
        mean = np.zeros((len(texts), found.shape[1]))
        np.add.at(mean, owners, found)
        mean /= np.bincount(owners)[:, None]
        return [
            Classified(self.labels[int(own.argmax())], dict(zip(self.labels, own.tolist(), strict=True)), was_cut)
            for own, was_cut in zip(mean, cut, strict=True)
        ]


def classify(
    model: str | Path, texts: str | Iterable[str], *, batch_size: int = 32, windows: bool = False
) -> list[Classified]:
    """Load the classifier at *model* and classify *texts*: see :meth:`TextClassifier.classify`."""
    given = [texts] if isinstance(texts, str) else list(texts)
    return TextClassifier(model).classify(given, batch_size=batch_size, windows=windows)
