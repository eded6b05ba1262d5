"""Batches of examples: pure functions of the step, texts of like length together, so that little is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ract.data.batches import padded, permute
from ract.data.examples import Examples
from ract.errors import BadInput

Batch = dict[str, torch.Tensor]
Indices = npt.NDArray[np.int64]
IGNORED = -100  # the label that transformers leaves out of the loss
_POOL_BATCHES = 32  # so many batches' worth of examples, drawn at random, are sorted by length among themselves


class ExampleOrder:
    """Which examples of the train split make up the batch of a step.

    *seed* puts all examples (of *domain*, where given) in one order; shard ``(i, n)`` is every n-th of that order from
    the i-th on. Every epoch visits each example of the shard once, in ``ceil(tokens / batch_tokens)`` batches of about
    *batch_tokens* tokens (never fewer than the longest example has).

    Raises BadInput when there is no example.
    """

    def __init__(
        self, data: Examples, *, batch_tokens: int, seed: int, shard: tuple[int, int] = (0, 1), domain: str = ""
    ) -> None:
        self.lengths = data.lengths("train")
        members = np.arange(len(self.lengths), dtype=np.int64)
        if domain:
            members = members[data.domain_ids["train"] == data.domains.index(domain)]
        order = permute(np.arange(len(members), dtype=np.int64), len(members), key=(seed,)) if len(members) else members
        index, shards = shard
        self.members = members[order[index::shards]]
        if not len(self.members):
            raise BadInput(
                f"{len(members)} examples are too few for {shards} shards", "Give more examples or fewer members"
            )
        own = self.lengths[self.members]
        self.batch_tokens = max(batch_tokens, int(own.max()))
        self.batches = int(-(-own.sum() // self.batch_tokens))
        self.key = (seed, index, shards)
        self._epoch: tuple[int, list[Indices]] = (-1, [])

    def batch(self, step: int) -> Indices:
        """The examples of training step *step*, the shortest first."""
        epoch, number = divmod(step, self.batches)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches_of(epoch))
        return self._epoch[1][number]

    def _batches_of(self, epoch: int) -> list[Indices]:
        count = len(self.members)
        order = self.members[permute(np.arange(count, dtype=np.int64), count, key=(*self.key, epoch))]
        lengths = self.lengths[order]
        pool = (np.cumsum(lengths) - 1) // (_POOL_BATCHES * self.batch_tokens)
        order = order[np.lexsort((lengths, pool))]
        batch = (np.cumsum(self.lengths[order]) - 1) // self.batch_tokens
        found = np.split(order, np.flatnonzero(np.diff(batch)) + 1)
        shuffled = permute(np.arange(len(found), dtype=np.int64), len(found), key=(*self.key, epoch, 1))
        return [found[i] for i in shuffled]


def micro_batches(data: Examples, split: str, examples: Indices, padded_tokens: int) -> list[Indices]:
    """*examples* cut into pieces that take at most *padded_tokens* tokens each, padding counted (or one example)."""
    source = data.tokens[split].lengths
    target = data.targets[split].lengths if data.task == "translation" else np.zeros_like(source)
    ordered = examples[np.argsort(data.lengths(split)[examples], kind="stable")]
    pieces: list[list[int]] = [[]]
    widest = (0, 0)
    for example in ordered.tolist():
        wider = (max(widest[0], int(source[example])), max(widest[1], int(target[example])))
        if pieces[-1] and (len(pieces[-1]) + 1) * sum(wider) > padded_tokens:
            pieces.append([])
            wider = (int(source[example]), int(target[example]))
        pieces[-1].append(example)
        widest = wider
    return [np.array(piece, dtype=np.int64) for piece in pieces if piece]


def collate(data: Examples, split: str, examples: Sequence[int] | Indices) -> Batch:
    """The batch of *examples*: int64 ``input_ids`` and ``attention_mask`` (batch, longest), and ``labels``: (batch,)
    for classification, (batch, longest target) with −100 as padding for translation.
    """
    inputs, mask = padded([data.tokens[split][int(example)] for example in examples], data.pad_token_id)
    if data.task == "translation":
        labels, _ = padded([data.targets[split][int(example)] for example in examples], IGNORED)
    else:
        labels = np.array(data.label_ids[split][np.asarray(examples)], dtype=np.int64)
    batch = {"input_ids": inputs, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(value) for name, value in batch.items()}


def heldout_batches(
    data: Examples, split: str, *, limit_tokens: int | None = None, part: tuple[int, int] = (0, 1), batch_tokens: int
) -> list[Batch]:
    """Batches of *split* for ``model(**batch).loss``, of about *batch_tokens* padded tokens each.

    *part* ``(i, n)`` is every n-th example of a fixed random order from the i-th on; of it, only the first ones up to
    *limit_tokens* tokens. Raises BadInput when there is no such example.
    """
    count = data.count(split)
    order = permute(np.arange(count, dtype=np.int64), count, key=(0,)) if count else np.zeros(0, dtype=np.int64)
    chosen = order[part[0] :: part[1]]
    if limit_tokens is not None:
        before = np.cumsum(data.lengths(split)[chosen]) - data.lengths(split)[chosen]
        chosen = chosen[before < limit_tokens]
    if not len(chosen):
        raise BadInput(f"the {split} split has too few examples ({count})", f"Give more {split} data")
    return [collate(data, split, piece) for piece in micro_batches(data, split, chosen, batch_tokens)]
