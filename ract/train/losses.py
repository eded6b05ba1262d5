"""What training minimises: ``1/n Σ L(y, f_θ(x)) + λ‖θ‖²``, where L may be taught by parents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

_PIECE = 1 << 18  # logits at a time: 1 MiB in fp32, which stays in a core's cache


def teachers_mixture(
    teacher_logits: Sequence[torch.Tensor], alpha: Sequence[float], temperature: float
) -> torch.Tensor:
    """``Σ αᵢ softmax(tᵢ/T)``; logits and result are (targets, classes).

    The teachers' distributions are mixed, not their logits, so that a teacher who is sure counts even where the others
    know nothing.
    """
    mixture = torch.zeros_like(teacher_logits[0], dtype=torch.float32)
    rows = _rows_of(mixture)
    for share, said in zip(alpha, teacher_logits, strict=True):
        for whole, one in zip(mixture.split(rows), said.split(rows), strict=True):
            whole.add_(F.softmax(one.float() / temperature, dim=-1), alpha=share)
    return mixture


def distillation_loss(logits: torch.Tensor, mixture: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T² · KL(mixture ‖ softmax(s/T))``, mean over targets (Hinton et al., 1503.02531).

    *logits* and *mixture* are (targets, classes). Computed as :func:`summed_cross_entropy` is.
    """
    if _in_pieces(logits):
        return torch.as_tensor(_Distillation.apply(logits, mixture, temperature)) / len(logits)
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, mixture.float(), reduction="batchmean")


def summed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Σ of the cross-entropies in nats; *logits* are (targets, classes), *targets* int64 (targets,).

    ``F.cross_entropy`` of the logits in fp32 with that ``label_smoothing``. On a CPU that asks for gradients they are
    made with the loss, a few rows at a time, so that nothing of the logits' size is ever kept in fp32: of a compact
    model with a vocabulary they are by far the largest tensor (as Liger Kernel does on a GPU, Hsu et al., 2410.10989).
    """
    if _in_pieces(logits):
        return torch.as_tensor(_CrossEntropy.apply(logits, targets, smoothing))
    return F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=smoothing)


def _in_pieces(logits: torch.Tensor) -> bool:
    return logits.device.type == "cpu" and logits.requires_grad and torch.is_grad_enabled()


def _rows_of(logits: torch.Tensor) -> int:
    """How many rows are taken at a time: on an accelerator all of them."""
    return max(1, _PIECE // logits.shape[1] if logits.device.type == "cpu" else len(logits))


class _CrossEntropy(torch.autograd.Function):
    """The sum of cross-entropies, with its gradient made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
        classes = logits.shape[1]
        classes, share = logits.shape[1], (1 - smoothing) or 1.0
        gradient, total = torch.empty_like(logits), logits.new_zeros((), dtype=torch.float32)
        rows = _rows_of(logits)
        for one, answers, slopes in zip(logits.split(rows), targets.split(rows), gradient.split(rows), strict=True):
            right = answers[:, None]
            said = one.float().log_softmax(-1)
            total -= (1 - smoothing) * said.gather(1, right).sum()
            if smoothing:
                total -= smoothing / classes * said.sum()
            said.exp_()
            if smoothing:  # divided by the share, what is taken off at the target is 1: bf16 has it exactly
                said.mul_(1 / share).sub_(smoothing / share / classes)
            taken = said.new_full((), (smoothing - 1) / share).expand(right.shape)
            slopes.copy_(said.scatter_add_(1, right, taken))
        ctx.save_for_backward(gradient)
        ctx.share = share
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (outer * ctx.share), None, None


class _Distillation(torch.autograd.Function):
    """``T² · KL``, summed over the targets, with its gradient made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, mixture: torch.Tensor, temperature: float) -> torch.Tensor:
        gradient, total = torch.empty_like(logits), logits.new_zeros((), dtype=torch.float32)
        rows = _rows_of(logits)
        for one, taught, slopes in zip(logits.split(rows), mixture.split(rows), gradient.split(rows), strict=True):
            right = taught.float()
            said = (one.float() / temperature).log_softmax(-1)
            total += temperature**2 * (right.xlogy(right).sum() - said.mul(right).sum())
            said.exp_().mul_(right.sum(-1, keepdim=True)).sub_(right)
            slopes.copy_(said.mul_(temperature))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None


def squared_norm(model: nn.Module) -> torch.Tensor:
    """``‖θ‖²`` over the matrices of *model* (norm scales and biases are not pulled to zero)."""
    return torch.stack([p.float().pow(2).sum() for p in model.parameters() if p.ndim >= 2]).sum()
