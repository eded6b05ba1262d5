"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ract.plan.graph import TrainSpec
from ract.train.muon import BatchedMuon

# Elements of a matrix up to which a CPU, too, orthogonalises many of them faster together: width 128, four times as
# many inside. At a width of 256 it is slower.
_SMALL = 1 << 16


def build_optimizers(model: nn.Module, spec: TrainSpec) -> list[torch.optim.Optimizer]:
    """The optimizers of one run; every parameter is in exactly one of them.

    ``muon``: Muon (Jordan 2024; Moonlight's RMS matching, 2502.16982, lets it share AdamW's learning rate) for the
    two-dimensional weights of the blocks, AdamW for embeddings, head and vectors. ``adamw``: AdamW for all.
    λ (*weight_decay*, decoupled) applies to matrices, embeddings included; norms and biases are left alone.
    """
    hidden, tables, vectors = _groups(model)
    if spec.optimizer == "adamw":
        hidden, tables = [], hidden + tables
    adamw = torch.optim.AdamW(
        [{"params": tables, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=spec.lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    if not hidden:
        return [adamw]
    small = max(matrix.numel() for matrix in hidden) <= _SMALL
    kind = BatchedMuon if small or hidden[0].is_cuda else torch.optim.Muon
    muon = kind(hidden, lr=spec.lr, weight_decay=spec.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw]


def _groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Matrices inside blocks, other matrices (embeddings, head), and everything else."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        tables.add(id(head.weight))
    hidden, other, vectors = [], [], []
    for parameter in model.parameters():
        if not parameter.requires_grad:  # fixed sinusoidal positions
            continue
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif parameter.ndim > 2 or id(parameter) in tables:
            other.append(parameter)
        else:
            hidden.append(parameter)
    return hidden, other, vectors


def wsd_multiplier(step: int, steps: int, warmup: float, decay: float) -> float:
    """Warm-up, stable, decay: the share of the peak learning rate at *step* (0-based) of *steps*.

    *warmup* and *decay* are shares of *steps*. The decay is linear to zero, reached just after the last step
    (2405.18392). A stage with ``decay = 0`` ends at the full rate, so that the next one continues the schedule.
    """
    rising = min(1.0, (step + 1) / max(1.0, warmup * steps))
    falling = min(1.0, (steps - step) / max(1.0, decay * steps)) if decay > 0 else 1.0
    return min(rising, falling)


def set_lr(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Give every parameter group the learning rate *lr*."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def optimizer_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """The optimizers' states as named tensors, ``<parameter>|<state>``: storable without pickle."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{names[id(p)]}|{key}": torch.as_tensor(value)
        for optimizer in optimizers
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizers(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Undo :func:`optimizer_tensors`."""
    owner = {id(p): optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, state = key.rsplit("|", 1)
        owner[id(parameters[name])].state[parameters[name]][state] = value.clone()
