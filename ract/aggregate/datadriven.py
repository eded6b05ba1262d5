"""Averages that ask the data: Fisher merging, RegMean, greedy soup.

Each runs the children on batches first and then writes a recipe like any other method. *batches* are keyword arguments
of ``forward`` with labels: one list that all children see, or a list of lists, each child its own (what it was trained
on, as the papers do).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from ract.aggregate.loaded import Batch, Parameters, load, loss_of, parameters, same_shapes
from ract.aggregate.match import Match, Weights, alpha_for, match, output_config
from ract.aggregate.merge import linear, recorded
from ract.aggregate.recipe import Recipe, TensorRecipe, Term
from ract.aggregate.weights import Mixture
from ract.checkpoint.directory import ModelDirectory
from ract.errors import BadInput, NonFiniteLoss
from ract.model.anatomy import anatomy
from ract.model.live import saved_names

Batches = Sequence[Batch] | Sequence[Sequence[Batch]]
# How much of the mean a statistic is raised by, so that where the data says nothing the result is the plain average.
_FLOOR = 1e-3


def fisher(
    children: Sequence[ModelDirectory], weights: Weights, *, batches: Batches, dtype: str | None = None
) -> Recipe:
    """``Σ αᵢ Fᵢ θᵢ / Σ αᵢ Fᵢ`` per entry, F the diagonal of the Fisher information (Matena & Raffel, arXiv:2111.09832).

    F is the mean over examples of the squared gradient of the loss (the empirical Fisher), scaled so that every child's
    sums to one: else the child that fits the data worst, with the largest gradients, would weigh most. All children's F
    are held in memory, in fp32. Raises BadInput without batches, or for children of different shapes.
    """
    matches, alpha = match(children, dtype), alpha_for(weights, children)
    statistics = [_squared_gradients(child, own) for child, own in _with_own(children, batches)]
    tensors = tuple(
        _from_statistics(one, alpha(one.name), [s.get(key) for s in statistics], _fisher_terms)
        for one, key in zip(matches, _saved(children[0], matches), strict=True)
    )
    return Recipe("fisher", output_config(children[0].config, matches), tensors, recorded(weights))


def regmean(
    children: Sequence[ModelDirectory],
    weights: Weights,
    *,
    batches: Batches,
    off_diagonal: float = 0.9,
    dtype: str | None = None,
) -> Recipe:
    """Linear layers with the least squared distance to all children's outputs (RegMean, Jin et al., arXiv:2212.09849).

    ``W = (Σ αᵢ Gᵢ)⁻¹ Σ αᵢ Gᵢ Wᵢ`` with ``Gᵢ = XᵢᵀXᵢ`` over the inputs of the layer, whose entries off the diagonal are
    multiplied by *off_diagonal*; what is no linear layer, and what is tied to embeddings, is averaged. The matrices G
    are held in memory, in fp32: the square of each layer's inputs, for each child. Raises BadInput without batches, for
    an *off_diagonal* outside 0…1, or for children of different shapes.
    """
    if not 0.0 <= off_diagonal <= 1.0:
        raise BadInput(f"off_diagonal is {off_diagonal:g}", "Give a number from 0 to 1")
    matches, alpha = match(children, dtype), alpha_for(weights, children)
    grams = [_grams(child, own, off_diagonal) for child, own in _with_own(children, batches)]
    transposed = {name for name, (_, conv) in grams[0].items() if conv}
    tensors = tuple(
        _from_statistics(
            one,
            alpha(one.name),
            [g[key][0] if key in g else None for g in grams],
            functools.partial(_regmean_terms, transposed=key in transposed),
        )
        for one, key in zip(matches, _saved(children[0], matches), strict=True)
    )
    notes = {"off_diagonal": off_diagonal}
    return Recipe("regmean", output_config(children[0].config, matches), tensors, recorded(weights), notes)


def greedy_soup(
    children: Sequence[ModelDirectory], weights: Weights, *, batches: Sequence[Batch], dtype: str | None = None
) -> Recipe:
    """Children added to the average best first, each kept if the loss on *batches* does not rise (arXiv:2203.05482).

    The average is in proportion to *weights* (uniform in the paper). The notes have the order and the losses. Raises
    BadInput without batches, for weights by group, or for children of different shapes.
    """
    if isinstance(weights, Mapping):
        raise BadInput("a greedy soup takes one weight per model, not weights by group")
    if not batches:
        raise BadInput("a greedy soup needs held-out data", "Give --data")
    mixture = Mixture([child.path for child in children])
    asked = [weight > 0 for weight in weights]
    losses = [mixture.loss(mixture.one_hot(i), batches) if ask else math.inf for i, ask in enumerate(asked)]
    kept, best = mixture.greedy_soup(losses, batches, weights)
    if not kept:
        raise NonFiniteLoss("no child has a finite loss on the data", "Check the children one by one")
    soup = mixture.average(kept, weights)[0].tolist()
    matches = match(children, dtype)
    shown = [loss if ask else None for loss, ask in zip(losses, asked, strict=True)]
    notes = {"ingredients": kept, "loss": best, "loss_children": shown}
    tensors = tuple(linear(one, soup) for one in matches)
    return Recipe("greedy_soup", output_config(children[0].config, matches), tensors, soup, notes)


def _with_own(
    children: Sequence[ModelDirectory], batches: Batches
) -> list[tuple[tuple[PreTrainedModel, Parameters], Sequence[Batch]]]:
    """Each child, live, with its batches."""
    if not batches:
        raise BadInput("the method needs held-out data", "Give --data")
    shared = isinstance(batches[0], Mapping)
    own = [cast(Sequence[Batch], batches)] * len(children) if shared else cast(Sequence[Sequence[Batch]], batches)
    if len(own) != len(children) or not all(own):
        raise BadInput(f"{len(own)} lists of batches were given for {len(children)} models", "Give one per model")
    live = [load(child.path) for child in children]
    known = [parameters(model) for model in live]
    same_shapes(known, [child.path for child in children])
    return list(zip(zip(live, known, strict=True), own, strict=True))


def _saved(child: ModelDirectory, matches: Sequence[Match]) -> list[str]:
    """The name each match is saved under, whatever the files call it."""
    shape = anatomy(child.path)
    return [shape.canonical(one.name) or one.name for one in matches]


def _from_statistics(
    one: Match, alpha: Sequence[float], statistics: list[torch.Tensor | None], function: Any
) -> TensorRecipe:
    """*function* of the children's tensors and *statistics*; without any, the average."""
    if any(s is None for s in statistics) or not one.is_float:
        return linear(one, alpha)
    terms = tuple(Term(child, name) for child, name in enumerate(one.names))
    bound = functools.partial(function, alpha=list(alpha), statistics=statistics)
    return TensorRecipe(one.name, one.shape, one.dtype, terms, bound)


def _fisher_terms(terms: list[torch.Tensor], alpha: list[float], statistics: list[torch.Tensor]) -> torch.Tensor:
    floor = _FLOOR * float(sum(s.mean() for s in statistics)) / len(statistics) or 1.0
    total, weight = torch.zeros_like(terms[0]), torch.zeros_like(terms[0])
    for theta, a, information in zip(terms, alpha, statistics, strict=True):
        share = (information + floor) * a
        total.addcmul_(share, theta)
        weight.add_(share)
    return total.div_(weight)


def _regmean_terms(
    terms: list[torch.Tensor], alpha: list[float], statistics: list[torch.Tensor], transposed: bool
) -> torch.Tensor:
    total: torch.Tensor | float = 0.0
    product: torch.Tensor | float = 0.0
    ridge = _FLOOR * float(sum(s.diagonal().mean() for s in statistics)) / len(statistics) or 1.0
    for theta, a, gram in zip(terms, alpha, statistics, strict=True):
        weighted = (gram.double() + ridge * torch.eye(len(gram), dtype=torch.float64)) * a
        total = total + weighted
        product = product + weighted @ (theta if transposed else theta.T).double()
    solved = torch.linalg.solve(cast(torch.Tensor, total), cast(torch.Tensor, product)).float()
    return solved if transposed else solved.T.contiguous()


def _squared_gradients(child: tuple[PreTrainedModel, Parameters], batches: Sequence[Batch]) -> Parameters:
    """Saved name → mean over examples of the squared gradient, the whole scaled to sum to one."""
    model, own = child
    found = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in own.items()}
    for batch in batches:
        for row in range(len(next(iter(batch.values())))):
            leaves = {name: p.detach().float().requires_grad_(True) for name, p in own.items()}
            loss_of(model, {key: value[row : row + 1] for key, value in batch.items()}, leaves).backward()
            for name, leaf in leaves.items():
                if leaf.grad is not None:
                    found[name].addcmul_(leaf.grad, leaf.grad)
    total = float(sum(f.sum() for f in found.values())) or 1.0
    scaled = {name: f.div_(total) for name, f in found.items()}
    return dict(revert_weight_conversion(model, scaled))


@torch.no_grad()
def _grams(
    child: tuple[PreTrainedModel, Parameters], batches: Sequence[Batch], off_diagonal: float
) -> dict[str, tuple[torch.Tensor, bool]]:
    """Saved name of a linear layer's weight → ``(XᵀX per token, whether it is stored (in, out))``; padding left out."""
    model, _ = child
    grams: dict[str, tuple[torch.Tensor, bool]] = {}
    counts: dict[str, int] = {}
    mask: torch.Tensor | None = None

    def note(name: str, transposed: bool, x: torch.Tensor) -> None:
        rows = x[mask.bool()] if mask is not None and x.shape[:-1] == mask.shape else x.flatten(0, -2)
        gram = rows.float().T @ rows.float()
        grams[name] = (grams[name][0] + gram if name in grams else gram, transposed)
        counts[name] = counts.get(name, 0) + len(rows)

    saved = saved_names(model)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    hooks = [
        module.register_forward_pre_hook(
            lambda m, given, name=saved[f"{path}.weight"]: note(name[0], isinstance(m, Conv1D), given[0])
        )
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and id(module.weight) not in embeddings
    ]
    try:
        for batch in batches:
            mask = batch.get("attention_mask")
            loss_of(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (_shrunk(gram / counts[name], off_diagonal), conv) for name, (gram, conv) in grams.items()}


def _shrunk(gram: torch.Tensor, off_diagonal: float) -> torch.Tensor:
    return gram * off_diagonal + torch.diag(gram.diagonal() * (1.0 - off_diagonal))
