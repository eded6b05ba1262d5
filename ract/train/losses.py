"""What training minimises: ``1/n Σ L(y, f_θ(x)) + λ‖θ‖²``, where L may be taught by parents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def teachers_mixture(
    teacher_logits: Sequence[torch.Tensor], alpha: Sequence[float], temperature: float
) -> torch.Tensor:
    """``Σ αᵢ softmax(tᵢ/T)``; logits and result are (targets, classes).

    The teachers' distributions are mixed, not their logits, so that a teacher who is sure counts even where the others
    know nothing.
    """
    mixture = sum(a * F.softmax(t.float() / temperature, dim=-1) for a, t in zip(alpha, teacher_logits, strict=True))
    return torch.as_tensor(mixture)


def distillation_loss(logits: torch.Tensor, mixture: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T² · KL(mixture ‖ softmax(s/T))``, mean over targets (Hinton et al., 1503.02531).

    *logits* and *mixture* are (targets, classes).
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, mixture, reduction="batchmean")


def squared_norm(model: nn.Module) -> torch.Tensor:
    """``‖θ‖²`` over the matrices of *model* (norm scales and biases are not pulled to zero)."""
    return torch.stack([p.float().pow(2).sum() for p in model.parameters() if p.ndim >= 2]).sum()
