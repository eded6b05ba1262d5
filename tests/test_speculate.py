"""Speculative decoding: the larger model's own text, whatever the draft proposes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from ract.errors import BadInput
from ract.runtime.manifest import Manifest
from ract.runtime.sampling import Sampler
from ract.runtime.speculate import Speculator

VOCABULARY = 6


@dataclass
class Seen:
    text: tuple[int, ...] = ()

    def shortened(self, tokens: int) -> Seen:
        return Seen(self.text[:tokens])


class Table:
    """A decoder whose logits follow from the last three tokens by a table of random numbers."""

    def __init__(self, seed: int, limit: int = 0, scale: float = 1.5) -> None:
        self.manifest = Manifest(kind="decoder", limit=limit)
        self.seed, self.scale = seed, scale

    def after(self, text: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng((self.seed, *text[-3:])).normal(size=VOCABULARY, scale=self.scale)

    def begin(self) -> Seen:
        return Seen()

    def scores(self, ids: np.ndarray, state: Seen) -> tuple[np.ndarray, Seen]:
        assert not self.manifest.limit or len(state.text) + ids.shape[1] <= self.manifest.limit
        rows = []
        for token in ids[0].tolist():
            state = Seen((*state.text, token))
            rows.append(self.after(state.text))
        return np.array([rows], np.float32), state


def greedy(model: Table, prompt: list[int], count: int) -> list[int]:
    text, limit = list(prompt), model.manifest.limit
    context = list(prompt)
    for _ in range(count):
        if limit and len(context) > limit:
            context = context[-(limit // 2) :]
        token = int(model.after(tuple(context)).argmax())
        text.append(token)
        context.append(token)
    return text[len(prompt) :]


@pytest.mark.parametrize("ahead", [1, 3, 8])
@pytest.mark.parametrize("limit", [0, 12])
def test_greedy_text_is_that_of_the_larger_model(ahead: int, limit: int) -> None:
    target = Table(0, limit)
    for draft in (Table(1), Table(0), Table(2, 7)):
        made = Speculator(target, draft, ahead=ahead)
        found = list(made.tokens([1, 2], Sampler(0, 1, 0, 0), 40))
        assert found == greedy(target, [1, 2], 40)
        assert made.counts.kept <= made.counts.proposed
    same = Speculator(Table(0), Table(0), ahead=ahead)
    assert len(list(same.tokens([1, 2], Sampler(0, 1, 0, 0), 41))) == 41
    assert same.counts.kept == same.counts.proposed  # a draft that is the model itself is always right
    assert same.counts.passes == -(-41 // (ahead + 1))


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.8, 0), (1.0, 3)])
def test_samples_have_the_distribution_of_the_larger_model(top_p: float, top_k: int) -> None:
    target, draft = Table(3), Table(4)
    sampler = Sampler(0.9, top_p, top_k, 0)
    draws = 4000
    pairs = np.zeros((VOCABULARY, VOCABULARY))
    for _ in range(draws):
        first, second = Speculator(target, draft, ahead=2).tokens([1, 2], sampler, 2)
        pairs[first, second] += 1 / draws
    one = sampler.distribution(target.after((1, 2)))
    expected = np.stack([one[a] * sampler.distribution(target.after((1, 2, a))) for a in range(VOCABULARY)])
    assert np.abs(pairs - expected).max() < 4 * np.sqrt(0.25 / draws)
    assert np.abs(pairs - expected).sum() < 0.12


def test_what_cannot_look_ahead_is_refused() -> None:
    with pytest.raises(BadInput, match="logits for several tokens"):
        Speculator(Table(0), object())
    with pytest.raises(BadInput, match="ahead"):
        Speculator(Table(0), Table(1), ahead=0)
