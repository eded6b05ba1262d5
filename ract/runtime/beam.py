"""Beam search for encoder-decoders, with numpy: as ``transformers`` does it, for engines that are not torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ract.runtime.sampling import log_softmax

Ids = npt.NDArray[np.int64]
_NEVER = -1e9


class DecoderState(Protocol):
    """What a decoder has seen."""

    def reordered(self, rows: Ids) -> Self:
        """The state whose row *i* is this one's row ``rows[i]``."""


S = TypeVar("S", bound=DecoderState)


class Stepping(Protocol[S]):
    """An engine that writes one token at a time."""

    def step(self, ids: Ids, state: S) -> tuple[npt.NDArray[np.float32], S]:
        """Logits (rows, vocabulary) after *ids* (rows, 1), and the state that has seen them."""


def search(engine: Any, state: Any, sentences: int, **options: Any) -> list[list[int]]:
    """:func:`beam_search`, by the engine's own method of the same signature where it has one (``search``)."""
    if hasattr(engine, "search"):
        found: list[list[int]] = engine.search(state, sentences, **options)
        return found
    return beam_search(engine, state, sentences, **options)


@dataclass
class _Hypothesis:
    score: float
    tokens: list[int]


def beam_search(
    engine: Stepping[S],
    state: S,
    sentences: int,
    *,
    start: int,
    ends: Sequence[int],
    num_beams: int,
    max_new_tokens: int,
    first: int | None = None,
    last: int | None = None,
    never: Sequence[Sequence[int]] = (),
) -> list[list[int]]:
    """The best translation of each of *sentences*, whose encoder's outputs are the rows of *state*.

    A hypothesis is scored by its mean log-probability a token; a sentence is done when none of its running beams can
    still beat the worst of *num_beams* finished ones. Each begins with *first* and, at the limit, ends with *last*,
    whatever the model thinks of them; none contains a sequence of tokens that is in *never*.
    """
    beams = num_beams
    state = state.reordered(np.repeat(np.arange(sentences), beams))
    scores = np.full((sentences, beams), _NEVER)
    scores[:, 0] = 0.0
    tokens = np.full((sentences, beams, 1), start, dtype=np.int64)
    finished: list[list[_Hypothesis]] = [[] for _ in range(sentences)]
    open_ = np.ones(sentences, dtype=bool)
    for length in range(1, max_new_tokens + 1):
        logits, state = engine.step(tokens[:, :, -1].reshape(-1, 1), state)
        vocabulary = logits.shape[-1]
        likely = log_softmax(logits.astype(np.float64))
        for *before, final in never:
            likely[_ending_with(tokens.reshape(sentences * beams, -1), before), final] = -np.inf
        forced = last if length == max_new_tokens and last is not None else first if length == 1 else None
        if forced is not None:
            likely[:] = -np.inf
            likely[:, forced] = 0.0
        total = (likely + scores.reshape(-1, 1)).reshape(sentences, -1)
        origin = np.zeros((sentences, beams), dtype=np.int64)
        chosen = np.zeros((sentences, beams), dtype=np.int64)
        for row in range(sentences):
            best = _largest(total[row], 2 * beams)
            # At the limit every hypothesis counts as finished, with or without its end.
            ending = np.isin(best % vocabulary, ends) | (length == max_new_tokens)
            for place in np.flatnonzero(ending[:beams]) if open_[row] else ():
                beam = int(best[place]) // vocabulary
                written = [*tokens[row, beam, 1:].tolist(), int(best[place]) % vocabulary]
                finished[row].append(_Hypothesis(float(total[row, best[place]]) / length, written))
            finished[row] = sorted(finished[row], key=lambda one: -one.score)[:beams]
            going_on = best[~ending][:beams] if length < max_new_tokens else best[:beams]
            origin[row], chosen[row] = going_on // vocabulary, going_on % vocabulary
            scores[row] = total[row, going_on]
            full = len(finished[row]) == beams
            if full and scores[row, 0] / length <= finished[row][-1].score:
                open_[row] = False
        rows = (origin + beams * np.arange(sentences)[:, None]).reshape(-1)
        tokens = np.concatenate([tokens.reshape(sentences * beams, -1)[rows], chosen.reshape(-1, 1)], axis=1)
        tokens = tokens.reshape(sentences, beams, -1)
        if not open_.any():
            break
        state = state.reordered(rows)
    return [finished[row][0].tokens if finished[row] else tokens[row, 0, 1:].tolist() for row in range(sentences)]


def _ending_with(tokens: Ids, last: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which rows of *tokens* (rows, written) end with *last*."""
    count = len(last)
    if tokens.shape[1] < count:
        return np.zeros(len(tokens), dtype=bool)
    return (tokens[:, tokens.shape[1] - count :] == np.array(last, dtype=np.int64)).all(1)


def _largest(values: npt.NDArray[np.float64], count: int) -> Ids:
    """Indices of the *count* largest of *values*, the largest first."""
    some = np.argpartition(-values, count - 1)[:count]
    return some[np.argsort(-values[some], kind="stable")]
