"""The key-value caches of an ensemble's members, held in one :class:`transformers.Cache`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache


class EnsembleCache(Cache):
    """The key-value caches of all members, handed around by ``generate`` as one."""

    is_compileable = False

    def __init__(self, members: Sequence[Cache]) -> None:
        self.members = list(members)

    def __len__(self) -> int:
        return len(self.members[0])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens held so far, which is the same for every member."""
        return self.members[0].get_seq_length(layer_idx)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """The most tokens that every member can hold; -1 when none has a limit."""
        limits = [n for n in (member.get_max_length(layer_idx) for member in self.members) if n >= 0]
        return min(limits, default=-1)

    def reset(self) -> None:
        """Empty every member's cache."""
        self._each("reset")

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Follow the surviving beams."""
        self._each("reorder_cache", beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens."""
        self._each("crop", tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch."""
        self._each("batch_repeat_interleave", repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some sequences of the batch."""
        self._each("batch_select_indices", indices)

    def _each(self, method: str, *args: Any) -> None:
        for member in self.members:
            getattr(member, method)(*args)
