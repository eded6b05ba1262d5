"""A plan's training runs: their values, and their lengths by their tables, by shares of a budget, or by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ract.cost import AnyShape
from ract.plan.defaults import FINAL_DECAY, TOKENS_PER_PARAMETER, default_epochs, values_for, whole_steps
from ract.plan.graph import DataSize, TrainSpec, kept_bytes
from ract.plan.schema import BaselineTable, LevelTable, Plan
from ract.plan.tables import BranchTable, TrainTable

# How stages without a length of their own share a budget of FLOPs: the cheap small models first, most for the last one.
_SHARE = {"pretrain": 3.0, "leaf": 3.0, "branch": 2.0, "heal": 2.0, "student": 2.0, "last": 13.0}
# What teachers say at a target is a probability for each entry of the vocabulary, or each class. So much of it is kept
# in memory: about a megabyte of text, where epochs are many, and any number of texts to classify.
_KEPT_BYTES = 2**30


class Runs:
    """The runs of *plan*'s stages; *flops* is what all its training together may take, None for no such limit."""

    def __init__(
        self,
        plan: Plan,
        levels: Sequence[LevelTable],
        size: DataSize,
        flops: float | None,
        *,
        objective: str,
        fine_tuning: bool,
    ) -> None:
        self.plan, self.size, self.flops = plan, size, flops
        self.objective, self.fine_tuning = objective, fine_tuning
        stages = ["pretrain"] * bool(plan.compact.pretrain) + ["leaf"]
        for level in levels:
            stages += ["branch"] * bool(level.branch) + ["student"] * (level.method == "distill")
            stages += [("last" if level is levels[-1] else "heal")] * bool(level.heal)
        self.shares = sum(_SHARE[stage] for stage in stages)

    def spec(
        self,
        stage: TrainTable,
        shape: AnyShape,
        share: str,
        *,
        last: bool,
        among: int = 1,
        parts: int = 1,
        objective: str | None = None,
        teachers: Sequence[AnyShape] = (),
    ) -> TrainSpec:
        """A run of *stage*, one of *among* that divide its *share* of the budget, on one of *parts* of the data.

        *last*: nothing is trained further, so that the learning rate falls at the end. *teachers*: what they are.
        """
        objective = objective or self.objective
        values = self.values(objective, stage, last=last)
        each = shape.train_flops_per_token(values["block_size"], values["batch_tokens"], values["optimizer"])
        taught = sum(teacher.forward_flops_per_token(values["block_size"]) for teacher in teachers)
        length = partial(self._tokens, stage, objective, share, shape.parameters, among, parts)
        tokens = length(each + taught)
        once = self._kept(objective, values, shape.vocab_size) if teachers else 0
        if not 0 < once < tokens:
            return whole_steps(TrainSpec(**values, tokens=tokens))
        # Read more than once, what the teachers say is kept, and its FLOPs are free for more of the student's.
        return whole_steps(TrainSpec(**values, tokens=length(each, once * taught), teacher_tokens=once))

    def values(self, objective: str, stage: TrainTable | BaselineTable, *, last: bool) -> dict[str, Any]:
        """Every value of a run of *stage* but its length."""
        decay = FINAL_DECAY if last else 0.0
        return values_for(objective, self.plan.train, stage, fine_tuning=self.fine_tuning, decay=decay)

    def _kept(self, objective: str, values: Mapping[str, Any], vocab_size: int) -> int:
        """Tokens of the train split on which what teachers say can be kept: all that are read, or 0.

        0 where it would take too much memory, and where a text is another one each time it is read.
        """
        tokens, classes = self.size.tokens, vocab_size
        if objective == "next-token":
            tokens = (tokens - 1) // values["block_size"] * values["block_size"]
        elif objective == "classification":
            classes = self.size.labels
        changing = objective == "masked" or values["token_splits"] or values["token_dropout"]
        small = kept_bytes(tokens, classes) <= _KEPT_BYTES
        return max(0, tokens) if small and not changing else 0

    def _tokens(
        self,
        stage: TrainTable,
        objective: str,
        share: str,
        parameters: int,
        among: int,
        parts: int,
        flops_per_token: float,
        flops_before: float = 0.0,
    ) -> int:
        """The length: *flops_per_token* counts everything that a token costs, *flops_before* what any length does."""
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
