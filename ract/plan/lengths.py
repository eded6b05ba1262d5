"""How many tokens each stage of a plan trains on: as its table says, by its share of a budget, or by default."""

from __future__ import annotations

from collections.abc import Sequence

from ract.plan.defaults import TOKENS_PER_PARAMETER, default_epochs
from ract.plan.graph import DataSize
from ract.plan.schema import LevelTable, Plan
from ract.plan.tables import BranchTable, TrainTable

# How stages without a length of their own share a budget of FLOPs: the cheap small models first, most for the last one.
_SHARE = {"pretrain": 3.0, "leaf": 3.0, "branch": 2.0, "heal": 2.0, "student": 6.0, "last": 13.0}
# What teachers say on a token is a probability for each entry of the vocabulary. So much of it is kept in memory: about
# a megabyte of text, where epochs are many. A larger text is read few times.
_BYTES_PER_PROBABILITY, _KEPT_BYTES = 2, 2**30


class Lengths:
    """The lengths of *plan*'s stages; *flops* is what all its training together may take, None for no such limit."""

    def __init__(
        self, plan: Plan, levels: Sequence[LevelTable], size: DataSize, flops: float | None, *, fine_tuning: bool
    ) -> None:
        self.size, self.flops, self.fine_tuning = size, flops, fine_tuning
        stages = ["pretrain"] * bool(plan.compact.pretrain) + ["leaf"]
        for level in levels:
            stages += ["branch"] * bool(level.branch) + ["student"] * (level.method == "distill")
            stages += [("last" if level is levels[-1] else "heal")] * bool(level.heal)
        self.shares = sum(_SHARE[stage] for stage in stages)

    def kept(self, objective: str, block_size: int, vocab_size: int) -> int:
        """Tokens of the train split on which what teachers say can be kept: all that are read, or 0 if too many."""
        tokens = (self.size.tokens - 1) // block_size * block_size
        small = tokens * vocab_size * _BYTES_PER_PROBABILITY <= _KEPT_BYTES
        return tokens if objective == "next-token" and tokens > 0 and small else 0

    def tokens(
        self,
        stage: TrainTable,
        objective: str,
        share: str,
        parameters: int,
        flops_per_token: float,
        among: int,
        parts: int,
        flops_before: float = 0.0,
    ) -> int:
        """Tokens of one run of *stage*, whose share of the budget *among* runs divide, on one of *parts* of the data.

        *flops_per_token* counts everything that a token costs, its teachers' forward passes too; *flops_before* is what
        is spent whatever the length.
        """
        tokens, epochs = getattr(stage, "tokens", None), getattr(stage, "epochs", None)
        if tokens is not None:
            return tokens
        if epochs is None and self.flops is not None:
            own = self.flops * _SHARE[share] / self.shares / among
            return round(max(0.0, own - flops_before) / flops_per_token)
        if epochs is None and objective != "next-token":
            epochs = default_epochs(objective, share, fine_tuning=self.fine_tuning)
        if epochs is not None:
            text = self.size.text_tokens if objective == "masked" else self.size.tokens
            by_part = isinstance(stage, BranchTable) and ("data" in stage.vary or "domain" in stage.vary)
            return round(epochs * text / (parts if by_part else 1))
        return TOKENS_PER_PARAMETER * parameters // (4 * parts if share == "branch" else 1)
