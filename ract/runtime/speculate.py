"""Speculative decoding: a smaller model of the same tree proposes tokens, the larger one checks several at once.

Leviathan et al. 2023 (2211.17192): a proposed token is kept with probability ``min(1, p/q)``, else one is drawn from
what ``p`` has more than ``q``; so the text has the distribution of the larger model, whatever the smaller one proposes.
Greedy, the text is the larger model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ract.errors import BadInput
from ract.runtime.sampling import Sampler

Ids = npt.NDArray[np.int64]


@dataclass
class Counts:
    """How it went: tokens *proposed* by the draft, of those *kept*, and passes of the larger model."""

    proposed: int = 0
    kept: int = 0
    passes: int = 0


class Speculator:
    """Continues texts with *target* from proposals of *draft*: graphs of two exported decoders with one tokenizer,
    which can give the logits of several new tokens at once (``scores``).

    *ahead* tokens are proposed at a time. Raises BadInput when the two have other vocabularies or cannot look ahead.
    """

    def __init__(self, target: Any, draft: Any, *, ahead: int = 4) -> None:
        if ahead < 1:
            raise BadInput(f"{ahead} tokens ahead are none", "Give at least 1")
        for one in (target, draft):
            if not hasattr(one, "scores"):
                raise BadInput(
                    "an engine without logits for several tokens cannot check a draft", "Use exports to onnx"
                )
        self.target, self.draft, self.ahead = target, draft, ahead
        self.counts = Counts()

    def tokens(self, prompt: list[int], sampler: Sampler, count: int) -> Iterator[int]:
        """*count* tokens after *prompt*, drawn as *sampler* says. What ends a text is the caller's to see."""
        context = list(prompt)
        target, draft = _Reader(self.target), _Reader(self.draft)
        limit = self.target.manifest.limit or 10**9
        draft_limit = self.draft.manifest.limit or limit
        while count > 0:
            if len(context) > limit:  # as without a draft: it goes on from the last half
                context = context[-max(1, limit // 2) :]
            ahead = max(0, min(self.ahead, count - 1, limit - len(context), draft_limit - len(context)))
            proposed, doubts = self._propose(draft, context, sampler, ahead)
            logits = target.logits([*context, *proposed], ahead + 1)
            self.counts.passes += 1
            for token in self._check(proposed, doubts, logits, sampler):
                context.append(token)
                count -= 1
                yield token

    def _propose(
        self, draft: _Reader, written: list[int], sampler: Sampler, ahead: int
    ) -> tuple[list[int], list[npt.NDArray[np.float64]]]:
        """*ahead* tokens of the draft, and the distribution that each was drawn from (greedy: none)."""
        proposed: list[int] = []
        doubts = []
        for _ in range(ahead):
            logits = draft.logits([*written, *proposed], 1)[0]
            if sampler.temperature == 0:
                proposed.append(int(logits.argmax()))
                continue
            doubts.append(sampler.distribution(logits))
            proposed.append(sampler.draw(doubts[-1]))
        self.counts.proposed += ahead
        return proposed, doubts

    def _check(
        self,
        proposed: list[int],
        doubts: list[npt.NDArray[np.float64]],
        logits: npt.NDArray[np.float32],
        sampler: Sampler,
    ) -> list[int]:
        """The kept beginning of *proposed* and one token more of the larger model's own."""
        kept: list[int] = []
        for place, token in enumerate(proposed):
            if sampler.temperature == 0:
                own = int(logits[place].argmax())
                if own != token:
                    return [*kept, own]
            else:
                p, q = sampler.distribution(logits[place]), doubts[place]
                if sampler.generator.random() * q[token] >= p[token]:
                    rest = np.maximum(p - q, 0)
                    return [*kept, sampler.draw(rest / rest.sum())]
            kept.append(token)
            self.counts.kept += 1
        last = logits[len(proposed)]
        own = int(last.argmax()) if sampler.temperature == 0 else sampler.draw(sampler.distribution(last))
        return [*kept, own]


class _Reader:
    """One model and how much of the text it has seen; goes back where a proposal was not kept."""

    def __init__(self, graphs: Any) -> None:
        self.graphs = graphs
        self.state = graphs.begin()
        self.seen: list[int] = []

    def logits(self, text: list[int], count: int) -> npt.NDArray[np.float32]:
        """Logits (count, vocabulary) after each of the last *count* tokens of *text*."""
        common = len(self.seen)
        if text[:common] != self.seen:
            common = next(i for i, (a, b) in enumerate(zip(self.seen, [*text, -1], strict=False)) if a != b)
        common = min(common, len(text) - count)  # the last ones are looked at anew: their logits are asked for
        state = self.state.shortened(common) if common < len(self.seen) else self.state
        new = np.array([text[common:]], dtype=np.int64)
        found, self.state = self.graphs.scores(new, state)
        self.seen = list(text)
        return found[0, -count:]


def speculator(target: Any, draft_directory: Path, *, ahead: int = 4, threads: int = 1) -> Speculator:
    """A speculator of the decoder *target* with the exported decoder in *draft_directory* as its draft.

    Raises BadInput when the draft is no exported decoder or has another tokenizer.
    """
    from ract.runtime.engines.text import ExportedDecoder

    draft = ExportedDecoder(draft_directory, threads=threads)
    if not isinstance(target, ExportedDecoder):
        raise BadInput("only exported models are checked ahead by a draft", "Export the model: ract export DIR -o OUT")
    if draft.tokens.backend.to_str() != target.tokens.backend.to_str():
        raise BadInput(
            f"{draft_directory} has another tokenizer than {target.directory}", "Take a draft from the same tree"
        )
    return Speculator(target.model, draft.model, ahead=ahead)
