"""What a classifier sees of a text in training: the text with some of its tokens divided or hidden, new in every step.

Few labelled texts are soon known by heart, above all by their rare words. A word that now and then comes in pieces, or
not at all, makes the model read the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from ract.errors import BadInput

Row = npt.NDArray[np.int64]


class Augmentation:
    """Changes rows of token numbers at random.

    *splits* is the share of the tokens joined by byte-pair encoding that come as the two tokens they were joined from,
    these again with the same chance: what BPE-dropout (Provilkov et al., 1910.13267) does, from token numbers alone.
    *dropout* is the share of tokens that are then shown as the mask (word dropout, Iyyer et al., 2015, P15-1162).
    Special tokens stay. A row that grows beyond *max_tokens* loses tokens before its last one.

    Raises BadInput where the tokenizer joins no tokens (for *splits*) or has no mask (for *dropout*).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, splits: float, dropout: float, max_tokens: int) -> None:
        self.splits, self.dropout, self.max_tokens = splits, dropout, max_tokens
        self.special = np.array(sorted(tokenizer.all_special_ids), dtype=np.int64)
        self.parts = _joined_from(tokenizer) if splits else np.zeros((0, 2), dtype=np.int64)
        if dropout and tokenizer.mask_token_id is None:
            raise BadInput("the tokenizer has no mask token for token_dropout", "Leave token_dropout out")
        self.mask = tokenizer.mask_token_id

    def __call__(self, rows: Sequence[npt.NDArray[np.integer]], generator: np.random.Generator) -> list[Row]:
        """*rows* with what *generator* draws changed in them, each a new array."""
        flat = np.concatenate(rows).astype(np.int64)
        owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        if self.splits:
            flat, owner = self._divided(flat, owner, generator)
        if self.dropout:
            hidden = generator.random(len(flat)) < self.dropout
            flat[hidden & ~np.isin(flat, self.special)] = self.mask
        found = np.split(flat, np.searchsorted(owner, np.arange(1, len(rows))))
        limit = self.max_tokens
        return [row if len(row) <= limit else np.append(row[: limit - 1], row[-1]) for row in found]

    def _divided(self, flat: Row, owner: Row, generator: np.random.Generator) -> tuple[Row, Row]:
        fresh = np.ones(len(flat), dtype=bool)  # what has not been drawn for yet
        while fresh.any():
            hit = fresh & (self.parts[flat, 0] >= 0)
            hit[hit] = generator.random(int(hit.sum())) < self.splits
            first = np.flatnonzero(hit) + np.arange(int(hit.sum()))  # where the two parts will stand
            pairs = self.parts[flat[hit]]
            copies = 1 + hit
            flat, owner, fresh = np.repeat(flat, copies), np.repeat(owner, copies), np.repeat(hit, copies)
            flat[first], flat[first + 1] = pairs[:, 0], pairs[:, 1]
        return flat, owner


def _joined_from(tokenizer: PreTrainedTokenizerBase) -> npt.NDArray[np.int64]:
    """The two tokens that each token was joined from, ``(vocabulary, 2)``; −1 for those that were not joined."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "BPE":
        raise BadInput(
            f"token_splits divides the tokens of a byte-pair encoding, and this tokenizer is of type {model['type']}",
            "Leave token_splits out",
        )
    numbers = model["vocab"]
    parts = np.full((len(tokenizer), 2), -1, dtype=np.int64)
    for first, second in model["merges"]:
        parts[numbers[first + second]] = numbers[first], numbers[second]
    return parts
