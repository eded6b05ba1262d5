"""Give texts their classes: what ``ract classify`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ract.errors import BadInput
from ract.evaluate.classification import encode, positions, probabilities_of
from ract.evaluate.loading import load_for
from ract.runtime.locate import model_at

_LONGEST = 512  # tokens read at once where neither model nor tokenizer sets a limit


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


class TextClassifier:
    """A loaded classifier, for callers with more than one text. *path* is a model directory or a finished run.

    Raises BadInput as loading does.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = model_at(path)
        self.model, self.tokenizer = load_for("classification", self.path)
        self.limit = positions(self.model, self.tokenizer) or _LONGEST
        self.labels = [str(self.model.config.id2label[i]) for i in range(self.model.config.num_labels)]

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
            if windows:
                pieces = self._windows(text)
            else:
                first, cut[number] = encode(self.tokenizer, text, self.limit)
                pieces = [first]
            rows += pieces
            owners += [number] * len(pieces)
        if not rows:
            return []
        found = probabilities_of(self.model, self.tokenizer, rows, batch_size=batch_size)
        mean = np.zeros((len(texts), found.shape[1]))
        np.add.at(mean, owners, found)
        mean /= np.bincount(owners)[:, None]
        return [
            Classified(self.labels[int(own.argmax())], dict(zip(self.labels, own.tolist(), strict=True)), was_cut)
            for own, was_cut in zip(mean, cut, strict=True)
        ]

    def _windows(self, text: str) -> list[Sequence[int]]:
        return self.tokenizer(
            text,
            truncation=True,
            max_length=self.limit,
            stride=self.limit // 4,
            return_overflowing_tokens=True,
            split_special_tokens=True,
        )["input_ids"]


def classify(
    model: str | Path, texts: str | Iterable[str], *, batch_size: int = 32, windows: bool = False
) -> list[Classified]:
    """Load the classifier at *model* and classify *texts*: see :meth:`TextClassifier.classify`."""
    given = [texts] if isinstance(texts, str) else list(texts)
    return TextClassifier(model).classify(given, batch_size=batch_size, windows=windows)
