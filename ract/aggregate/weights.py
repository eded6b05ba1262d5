"""α: uniform, given, or learned by gradient through the merged model.

Every aggregation is ``Θ = Σᵢ αᵢ Eᵢ(θᵢ)`` with ``Σᵢ αᵢ = 1``. Learning α needs one forward and backward pass per step,
whatever the number of children: by the chain rule ``dL/dαᵢ = ⟨dL/dΘ, θᵢ⟩``, a dot product per child and tensor.
AdaMerging (arXiv:2310.02575) learns coefficients without labels by entropy; with labels the loss itself is better.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from ract.aggregate.alpha import given, uniform  # noqa: F401 - α of every kind can be had from here
from ract.aggregate.loaded import Batch, Parameters, Progress, load, loss_of, mean_loss, parameters, same_shapes
from ract.checkpoint.directory import open_model
from ract.checkpoint.tensors import TensorReader
from ract.errors import BadInput, NonFiniteLoss
from ract.model.anatomy import anatomy
from ract.model.live import saved_names
from ract.train.device import autocast_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Per = Literal["model", "layer", "tensor"]


def project_to_simplex(v: torch.Tensor, affine: bool = False) -> torch.Tensor:
    """The nearest point (least squares) to each row of *v* ``(…, n)`` that sums to 1 and, unless *affine*, is ≥ 0.

    Duchi et al. 2008 (doi:10.1145/1390156.1390306), by sorting; computed in fp64, returned in the dtype of *v*.
    """
    x = v.double()
    n = x.shape[-1]
    if affine:
        return (x + (1.0 - x.sum(-1, keepdim=True)) / n).to(v.dtype)
    ordered = x.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1.0
    kept = (ordered * torch.arange(1, n + 1, device=x.device) > excess).sum(-1, keepdim=True)
    shift = excess.gather(-1, kept - 1) / kept
    return (x - shift).clamp_min(0.0).to(v.dtype)


@dataclass(frozen=True)
class LearnedWeights:
    """α and what it is worth: mean losses in nats on the data it was chosen on, and on data it never saw.

    *weights* is a list (per model) or ``{group: list}`` (per layer or tensor). *chosen* is ``"learned"``,
    ``"uniform"`` or ``"child <i>"``, whichever has the least loss on the first data. The *held_out* losses are None
    without such data.
    """

    weights: list[float] | dict[str, list[float]]
    chosen: str
    loss: float
    loss_uniform: float
    loss_children: list[float]
    held_out_loss: float | None = None
    held_out_uniform: float | None = None
    held_out_children: list[float] | None = None


def learn(
    models: Sequence[Path],
    batches: Sequence[Batch],
    held_out: Sequence[Batch] = (),
    *,
    per: Per = "model",
    affine: bool = False,
    steps: int = 40,
    lr: float = 0.05,
    seed: int = 0,
    progress: Progress | None = None,
) -> LearnedWeights:
    """Learn α on *batches*, so that the merged model ``Σ αᵢ θᵢ`` has a small loss there.

    Measured on every batch, as they would be written (rounded to the children's dtype): uniform; each child; of three
    or more the greedy soup (Wortsman et al. 2022, 2203.05482), the average of those that help; and what gradients find
    from the better of the averages: Adam on α with a step size falling from *lr* to 0 and a projection on the simplex
    after each step (on ``Σα = 1`` alone with *affine*), one batch a step. The best is taken: the result is never worse
    there than any of them. *held_out* takes no part in any choice. A batch is the keyword arguments of ``forward``,
    with labels.

    Memory: the children stay mapped from disk; one fp32 copy of a model, the activations, and one tensor's gradient.

    Raises BadInput: no batches, children of different shapes, a model without a loss; NonFiniteLoss: every candidate
    has a loss that is not finite.
    """
    if not batches:
        raise BadInput("there is no data to learn the weights on", "Give --data with more text, or other weights")
    if per not in ("model", "layer", "tensor"):
        raise BadInput(f"weights per {per!r} are not known", "Known: model, layer, tensor")
    mixture = Mixture(models, per)
    count = len(models)
    losses: dict[str, float] = {}
    candidates: dict[str, torch.Tensor] = {}

    def measure(name: str, candidate: torch.Tensor) -> None:
        candidates[name], losses[name] = candidate, mixture.loss(candidate, batches)
        if progress:
            progress("compare weights", len(losses), count + 2)

    measure("uniform", mixture.uniform)
    for i in range(count):
        measure(f"child {i}", mixture.one_hot(i))
    if count > 2:
        kept, loss = mixture.greedy_soup([losses[f"child {i}"] for i in range(count)], batches)
        if 1 < len(kept) < count:
            candidates["greedy soup"], losses["greedy soup"] = mixture.average(kept), loss
    start = min((name for name in ("uniform", "greedy soup") if name in losses), key=losses.__getitem__)
    found = _descend(
        mixture, batches, candidates[start], affine=affine, steps=steps, lr=lr, seed=seed, progress=progress
    )
    measure("learned", found)
    finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        raise NonFiniteLoss("no child and no mixture of them has a finite loss", "Check the children one by one")
    # Of equals the simplest, and an average before a single child.
    simplest = ("uniform", "greedy soup", *(f"child {i}" for i in range(count)), "learned")
    chosen = min((name for name in simplest if name in finite), key=finite.__getitem__)
    unseen = {name: mixture.loss(candidates[name], held_out) for name in candidates} if held_out else {}
    return LearnedWeights(
        weights=mixture.as_weights(candidates[chosen]),
        chosen=chosen,
        loss=losses[chosen],
        loss_uniform=losses["uniform"],
        loss_children=[losses[f"child {i}"] for i in range(count)],
        held_out_loss=unseen.get(chosen),
        held_out_uniform=unseen.get("uniform"),
        held_out_children=[unseen[f"child {i}"] for i in range(count)] if unseen else None,
    )


def _descend(
    mixture: Mixture,
    batches: Sequence[Batch],
    start: torch.Tensor,
    *,
    affine: bool,
    steps: int,
    lr: float,
    seed: int,
    progress: Progress | None,
) -> torch.Tensor:
    """Projected Adam from *start*; the mean of the second half of the path, which is steadier than its end."""
    generator = torch.Generator().manual_seed(seed)
    alpha = start.clone()
    optimizer = torch.optim.Adam([alpha], lr=lr, betas=(0.9, 0.99))
    order: list[int] = []
    path = []
    for step in range(steps):
        order = order or torch.randperm(len(batches), generator=generator).tolist()
        gradient = mixture.gradient(alpha, batches[order.pop()])
        if not torch.isfinite(gradient).all():
            break  # the path ends where the loss does; its candidates so far are judged like any other
        for group in optimizer.param_groups:
            group["lr"] = lr * (1.0 - step / steps)
        # Along the all-ones direction Σα would change, which the projection undoes: only the rest may set Adam's scale.
        alpha.grad = gradient - gradient.mean(-1, keepdim=True)
        optimizer.step()
        alpha.copy_(project_to_simplex(alpha, affine))
        path.append(alpha.clone())
        if progress:
            progress("learn weights", step + 1, steps)
    return torch.stack(path[len(path) // 2 :]).mean(0) if path else alpha


class Mixture:
    """``Θ = Σᵢ αᵢ θᵢ`` as a live model, differentiable in α; α has shape ``(groups, children)``, fp64."""

    def __init__(self, models: Sequence[Path], per: Per = "model") -> None:
        live = [load(path) for path in models]
        self.model: PreTrainedModel = live[0]
        self.model.requires_grad_(False)
        self.children: list[Parameters] = [parameters(model) for model in live]
        same_shapes(self.children, models)
        self.groups, self.keys = _groups(self.model, Path(models[0]), per)
        self.rows = {group: row for row, group in enumerate(dict.fromkeys(self.groups.values()))}
        self.merged = {name: torch.empty_like(p, dtype=torch.float32) for name, p in self.children[0].items()}
        # The dtype each tensor will have in the file: the widest of the children's.
        self.dtypes = {
            name: functools.reduce(torch.promote_types, [child[name].dtype for child in self.children])
            for name in self.merged
        }
        self.autocast = autocast_dtype("auto", torch.device("cpu"))

    @property
    def uniform(self) -> torch.Tensor:
        """α = 1/n everywhere."""
        return torch.full((len(self.rows), len(self.children)), 1.0 / len(self.children), dtype=torch.float64)

    def one_hot(self, child: int) -> torch.Tensor:
        """α that gives *child* itself."""
        return self.average([child])

    def average(self, kept: Sequence[int], weights: Sequence[float] | None = None) -> torch.Tensor:
        """α of the average of the children *kept*, in proportion to *weights* (one for every child; else equal)."""
        alpha = torch.zeros_like(self.uniform)
        share = torch.tensor([1.0 if weights is None else weights[i] for i in kept], dtype=torch.float64)
        alpha[:, list(kept)] = share / share.sum()
        return alpha

    def greedy_soup(
        self, losses: Sequence[float], batches: Sequence[Batch], weights: Sequence[float] | None = None
    ) -> tuple[list[int], float]:
        """Children added to the average best first, each kept if the loss on *batches* does not rise (2203.05482).

        *losses* are the children's own there, one that is not finite leaves a child out. Which are kept, in order, and
        the loss of their average.
        """
        order = sorted((i for i, loss in enumerate(losses) if math.isfinite(loss)), key=losses.__getitem__)
        kept, best = order[:1], losses[order[0]] if order else math.inf
        for child in order[1:]:
            loss = self.loss(self.average([*kept, child], weights), batches)
            if loss <= best:
                kept, best = [*kept, child], loss
        return kept, best

    def as_weights(self, alpha: torch.Tensor) -> list[float] | dict[str, list[float]]:
        """α as the recipe takes it: a list, or a list per group."""
        rows: list[list[float]] = alpha.tolist()
        if self.keys is None:
            return rows[0]
        even = uniform(len(self.children))
        return {key: rows[self.rows[group]] if group in self.rows else even for key, group in self.keys.items()}

    def loss(self, alpha: torch.Tensor, batches: Sequence[Batch]) -> float:
        """The mean loss of the merged model as it would be stored."""
        self._merge(alpha, stored=True)
        return mean_loss(self.model, batches, self.merged)

    def gradient(self, alpha: torch.Tensor, batch: Batch) -> torch.Tensor:
        """``dL/dα`` on one batch up to a constant per group, shape ``(groups, children)``.

        Each tensor's gradient is reduced to its dot products as soon as backward has made it, then freed. The products
        are taken with ``θᵢ − Θ``: that shifts a row by a constant and keeps close children from cancelling out.
        """
        self._merge(alpha)
        gradient = torch.zeros_like(alpha)

        def reduce(name: str, merged: torch.Tensor) -> None:
            assert merged.grad is not None
            row = self.rows[self.groups[name]]
            for i, child in enumerate(self.children):
                difference = torch.sub(child[name], merged.detach())
                gradient[row, i] += torch.dot(merged.grad.flatten(), difference.flatten()).double()
            merged.grad = None

        handles = []
        for name, tensor in self.merged.items():
            tensor.requires_grad_(True)
            handles.append(tensor.register_post_accumulate_grad_hook(lambda t, name=name: reduce(name, t)))
        try:
            with torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
                loss = loss_of(self.model, batch, self.merged)
            loss.backward()
        finally:
            for handle, tensor in zip(handles, self.merged.values(), strict=True):
                handle.remove()
                tensor.requires_grad_(False)
        return gradient

    @torch.no_grad()
    def _merge(self, alpha: torch.Tensor, stored: bool = False) -> None:
        """Fill :attr:`merged`, accumulating in fp32; *stored*: rounded as the file will be."""
        rows = alpha.tolist()
        for name, out in self.merged.items():
            out.zero_()
            for weight, child in zip(rows[self.rows[self.groups[name]]], self.children, strict=True):
                if weight:
                    out.add_(child[name], alpha=weight)
            if stored and self.dtypes[name] != torch.float32:
                out.copy_(out.to(self.dtypes[name]))


def _groups(model: PreTrainedModel, path: Path, per: Per) -> tuple[dict[str, str], dict[str, str] | None]:
    """Parameter → the group that shares its α; and what a recipe calls it → that group (None: one α for all).

    A recipe speaks of layers, or of tensors as the file at *path* names them. Several tensors of the file may be one
    parameter in memory (experts); buffers in the file are in no group of parameters.
    """
    names = [name for name, _ in model.named_parameters()]
    if per == "model":
        return dict.fromkeys(names, "model"), None
    shape, disk = anatomy(path), saved_names(model)
    saved = {name: disk[name] or (shape.aliases.get(name, name),) for name in names}
    groups = {name: shape.group(saved[name][0]) if per == "layer" else name for name in names}
    by_saved = {one: groups[name] for name in names for one in saved[name]}
    with TensorReader.of(open_model(path)) as reader:
        in_file = list(reader.infos)
    keys = {name if per == "tensor" else shape.group(name): shape.canonical(name) or name for name in in_file}
    return groups, {key: by_saved.get(name, key) for key, name in keys.items()}
