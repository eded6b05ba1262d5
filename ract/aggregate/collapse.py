"""Nested linear levels as one pass over the leaves: ``Σ αᵢ Σ βᵢⱼ θᵢⱼ = Σ (αᵢ βᵢⱼ) θᵢⱼ``, nothing written in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Union

from ract.aggregate.recipe import Recipe, TensorRecipe, Term
from ract.checkpoint.directory import ModelDirectory
from ract.errors import RactError


@dataclass(frozen=True)
class Nested:
    """A node that is not written: its recipe over its own children, which are models or nested again."""

    recipe: Recipe
    children: Sequence[Child]


Child = Union[ModelDirectory, Nested]  # noqa: UP007 - the forward reference needs typing's spelling


def representative(child: Child) -> ModelDirectory:
    """A model directory with the tensors and the config that *child* has or would have: its first leaf."""
    return child if isinstance(child, ModelDirectory) else representative(child.children[0])


def collapse(recipe: Recipe, children: Sequence[Child]) -> tuple[Recipe, list[ModelDirectory]]:
    """The recipe over the distinct leaves below *children* that equals *recipe* over the children, and those leaves.

    Coefficients multiply along a path, and add where paths end in the same leaf; α becomes the leaves' coefficients.
    The result is more exact than level by level, which rounds at every level. Raises RactError where a level takes part
    of a tensor that is not linear.
    """
    plain = [child for child in children if isinstance(child, ModelDirectory)]
    if len(plain) == len(children):
        return recipe, plain
    leaves: dict[str, ModelDirectory] = {}
    below = [_flat(child, leaves) for child in children]
    tensors = tuple(_substituted(tensor, below) for tensor in recipe.tensors)
    weights = leaf_coefficients(tensors, len(leaves))
    return replace(recipe, tensors=tensors, weights=weights), list(leaves.values())


def _flat(child: Child, leaves: dict[str, ModelDirectory]) -> int | dict[str, TensorRecipe]:
    """The number of a leaf among *leaves*, or a nested child's tensors as recipes over *leaves*."""
    if isinstance(child, ModelDirectory):
        key = str(child.path.resolve())
        leaves.setdefault(key, child)
        return list(leaves).index(key)
    below = [_flat(one, leaves) for one in child.children]
    return {tensor.name: _substituted(tensor, below) for tensor in child.recipe.tensors}


def _substituted(tensor: TensorRecipe, below: Sequence[int | dict[str, TensorRecipe]]) -> TensorRecipe:
    weights: dict[tuple[int, str], float] = {}
    ordered: list[Term] = []
    for term in tensor.terms:
        source = below[term.child]
        if isinstance(source, int):
            ordered.append(replace(term, child=source))
            continue
        if term.name not in source:
            raise RactError(f"tensor {tensor.name} is made of {term.name}, which the level below does not have")
        part = source[term.name]
        if not part.is_linear:
            if tensor.is_linear and len(tensor.terms) == 1 and term.weight == 1.0:
                return replace(part, name=tensor.name, dtype=tensor.dtype)
            raise RactError(f"tensor {tensor.name} is made of {term.name}, which is not linear in the level below")
        if not tensor.is_linear and (len(part.terms) > 1 or part.terms[0].weight != 1.0):
            raise RactError(f"tensor {tensor.name} is not linear in {term.name}, which is a sum in the level below")
        ordered.extend(Term(sub.child, sub.name, term.weight * sub.weight) for sub in part.terms)
    if not tensor.is_linear:
        return replace(tensor, terms=tuple(ordered))
    for one in ordered:
        weights[one.child, one.name] = weights.get((one.child, one.name), 0.0) + one.weight
    kept = {key: w for key, w in weights.items() if w != 0.0} or dict(list(weights.items())[:1])
    return replace(tensor, terms=tuple(Term(child, name, w) for (child, name), w in kept.items()))


def leaf_coefficients(tensors: Sequence[TensorRecipe], leaves: int) -> list[float]:
    """What share each leaf has in the whole: its coefficient, averaged over all elements where it differs by tensor."""
    total = [0.0] * leaves
    elements = 0
    for tensor in tensors:
        if tensor.is_linear:
            count = 1
            for side in tensor.shape:
                count *= side
            elements += count
            for term in tensor.terms:
                total[term.child] += term.weight * count
    return [value / elements for value in total] if elements else total
