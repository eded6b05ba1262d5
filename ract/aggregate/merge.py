"""Merge: ``Θ = Σ αᵢ θᵢ``, the average of models with a shared ancestor.

Model soups (Wortsman et al. 2022, arXiv:2203.05482). Equal children give the child back bit for bit, and so does a
one-hot α. Models without a common ancestor must be aligned first (:mod:`ract.aggregate.align`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ract.aggregate.match import Match, Weights, alpha_for, match, output_config
from ract.aggregate.recipe import Recipe, TensorRecipe, Term
from ract.checkpoint.directory import ModelDirectory


def recipe(children: Sequence[ModelDirectory], weights: Weights, *, dtype: str | None = None) -> Recipe:
    """The linear merge of *children*: every tensor is ``Σ α[i] · child[i]``.

    *weights* is α, one number per child, or ``{group: α}`` by tensor or layer group. *dtype* is what to write, by
    default the children's widest. Raises BadInput for children that are not of one architecture.
    """
    matches = match(children, dtype)
    alpha = alpha_for(weights, children)
    tensors = tuple(linear(one, alpha(one.name)) for one in matches)
    return Recipe("merge", output_config(children[0].config, matches), tensors, recorded(weights))


def linear(one: Match, coefficients: Sequence[float]) -> TensorRecipe:
    """``Σ coefficients[i] · child[i]`` for one tensor; children with a zero coefficient are not even read."""
    terms = tuple(
        Term(child, name, float(c))
        for child, (name, c) in enumerate(zip(one.names, coefficients, strict=True))
        if c != 0.0
    )
    return TensorRecipe(one.name, one.shape, one.dtype, terms or (Term(0, one.names[0], 0.0),))


def recorded(weights: Weights) -> Any:
    """α as plain lists for the lineage."""
    if isinstance(weights, Mapping):
        return {group: [float(a) for a in alpha] for group, alpha in weights.items()}
    return [float(a) for a in weights]
