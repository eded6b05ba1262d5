"""What every kind of training has to say: which batches, which positions have a target, and the loss there."""

from __future__ import annotations

import torch
from torch import nn

from ract.data.example_batches import IGNORED, Batch, Indices
from ract.plan.graph import TrainSpec
from ract.train.kept import KeptAnswers
from ract.train.losses import summed_cross_entropy


class Objective:
    """One kind of training. Batches are dictionaries for the model, with ``labels``; a label of −100 is no target.

    The loss is a sum over targets, so that a mean over a whole batch is the same however the batch is cut into
    micro-batches or among processes.
    """

    one_shape = False  # whether all micro-batches of a run have one shape, and nothing in it depends on the values

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec
        self.first_step = spec.start_tokens // spec.batch_tokens
        self.kept: KeptAnswers | None = None

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> tuple[list[Batch], int]:
        """The forward passes of training step *step* for process *rank* of *world*, and the targets of all of them."""
        raise NotImplementedError

    def pieces(self) -> list[Indices]:
        """All that is read in an epoch, windows or examples by number, in pieces of a micro-batch."""
        raise NotImplementedError

    def batch(self, members: Indices) -> Batch:
        """The micro-batch of those windows or examples, with what the teachers say on them (``taught``) where kept."""
        batch = self._collated(members)
        return batch if self.kept is None else batch | {"taught": self.kept.at(members)}

    def target_counts(self) -> Indices:
        """How many targets each window or example has."""
        raise NotImplementedError

    def _collated(self, members: Indices) -> Batch:
        raise NotImplementedError

    def valid_batches(self) -> list[Batch]:
        """Held-out batches, the same in every evaluation; none where there is no held-out data."""
        raise NotImplementedError

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """What *model* predicts at the positions that have a target: (targets, classes)."""
        raise NotImplementedError

    def targets(self, batch: Batch) -> torch.Tensor:
        """The right answers there: int64 (targets,)."""
        labels = batch["labels"].flatten()
        return labels[labels != IGNORED]

    def loss_sum(self, logits: torch.Tensor, targets: torch.Tensor, *, training: bool) -> torch.Tensor:
        """Σ of cross-entropies in nats; smoothed and weighted only in *training*."""
        smoothing = self.spec.label_smoothing if training else 0.0
        return summed_cross_entropy(logits, targets, smoothing)
