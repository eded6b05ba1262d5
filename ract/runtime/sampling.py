"""The next token from logits, with numpy: the same for every engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.floating[Any]]


class Sampler:
    """Draws the next token from logits ``(vocab,)``, divided by *temperature* (0: always the likeliest): of the
    *top_k* likeliest (0: all), the fewest whose probabilities reach *top_p*. Equal *seed*, equal draws.
    """

    def __init__(self, temperature: float, top_p: float, top_k: int, seed: int) -> None:
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.generator = np.random.Generator(np.random.PCG64(seed))

    def __call__(self, logits: Logits) -> int:
        """The number of the token."""
        if self.temperature == 0:
            return int(logits.argmax())
        kept = self.kept(logits)
        return int(kept[self.draw(softmax(logits[kept].astype(np.float64) / self.temperature))])

    def draw(self, likely: npt.NDArray[np.float64]) -> int:
        """A place drawn from the probabilities *likely* (any,)."""
        found = np.searchsorted(np.cumsum(likely), self.generator.random() * likely.sum(), side="right")
        return int(min(found, np.flatnonzero(likely)[-1]))  # rounding may point behind the last one

    def distribution(self, logits: Logits) -> npt.NDArray[np.float64]:
        """The probabilities ``(vocab,)`` that a token is drawn with; the temperature is not 0."""
        kept = self.kept(logits)
        found = np.zeros(logits.shape[-1])
        found[kept] = softmax(logits[kept].astype(np.float64) / self.temperature)
        return found

    def kept(self, logits: Logits) -> npt.NDArray[np.int64]:
        """The tokens that may be drawn, the likeliest first."""
        order = np.argsort(-logits.astype(np.float64), kind="stable")
        if self.top_k:
            order = order[: self.top_k]
        if self.top_p < 1:
            likely = softmax(logits[order].astype(np.float64) / self.temperature)
            before = np.cumsum(likely) - likely
            order = order[before < self.top_p]
        return order


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities along the last axis."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log-probabilities along the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
