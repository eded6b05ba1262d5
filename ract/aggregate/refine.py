"""Refinements of the linear merge that need no data: slerp, task arithmetic, TIES, DARE, model stock.

Each is a pure function of tensors and a recipe that applies it to every tensor. Integer tensors are taken over when all
children agree. Where a method has a *base* (the common ancestor), the engine gives it as one more child, the last one.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ract.aggregate.match import Match, Weights, alpha_for, match, output_config
from ract.aggregate.merge import linear, recorded
from ract.aggregate.recipe import Recipe, TensorRecipe, Term
from ract.checkpoint.directory import ModelDirectory
from ract.errors import BadInput

Combine = Callable[[list[Tensor]], Tensor]


def slerp(children: Sequence[ModelDirectory], weights: Weights, *, dtype: str | None = None) -> Recipe:
    """Spherical interpolation of two models, tensor by tensor; α = (1 − t, t).

    Shoemake 1985, doi:10.1145/325165.325242.
    """
    if len(children) != 2:
        raise BadInput(f"slerp goes between two models, {len(children)} were given", "Use merge for more than two")
    return _recipe(
        "slerp",
        children,
        weights,
        dtype,
        lambda one, alpha: functools.partial(_slerp_terms, t=alpha[1]),
    )


def task_arithmetic(
    children: Sequence[ModelDirectory],
    weights: Weights,
    *,
    base: ModelDirectory,
    scale: float = 1.0,
    dtype: str | None = None,
) -> Recipe:
    """``θ₀ + λ Σ αᵢ (θᵢ − θ₀)`` with λ = *scale*, which is linear. Ilharco et al. 2023, arXiv:2212.04089.

    With Σ α = 1 and n children the paper's sum of task vectors with its λ is ``scale = n λ``.
    """
    matches = match([*children, base], dtype)
    alpha = alpha_for(weights, children)
    tensors = []
    for one in matches:
        coefficients = [scale * a for a in alpha(one.name)]
        tensors.append(linear(one, [*coefficients, 1.0 - sum(coefficients)]))
    notes = {"scale": scale}
    return Recipe(
        "task_arithmetic", output_config(children[0].config, matches), tuple(tensors), recorded(weights), notes
    )


def ties(
    children: Sequence[ModelDirectory],
    weights: Weights,
    *,
    base: ModelDirectory,
    density: float = 0.2,
    scale: float = 1.0,
    dtype: str | None = None,
) -> Recipe:
    """TIES: trim each task vector to its *density* largest entries, elect a sign per entry, average what agrees.

    Trimming is by tensor, so that no whole model need be held. Yadav et al.
    2023, arXiv:2306.01708, which recommends density 0.2 and scale 1.
    """
    _fraction("density", density)

    def combine(one: Match, alpha: Sequence[float]) -> Combine:
        return functools.partial(_ties_terms, alpha=list(alpha), density=density, scale=scale)

    return _recipe("ties", children, weights, dtype, combine, base=base, density=density, scale=scale)


def dare(
    children: Sequence[ModelDirectory],
    weights: Weights,
    *,
    base: ModelDirectory,
    density: float = 0.5,
    scale: float = 1.0,
    seed: int = 0,
    dtype: str | None = None,
) -> Recipe:
    """DARE: of each task vector keep a random *density* of the entries, divided by *density*; then add with α.

    Yu et al. 2024, arXiv:2311.03099. The same *seed* gives the same model, whatever the order of the tensors.
    """
    _fraction("density", density)

    def combine(one: Match, alpha: Sequence[float]) -> Combine:
        start = int.from_bytes(hashlib.sha256(f"{seed}/{one.name}".encode()).digest()[:7], "little")
        return functools.partial(_dare_terms, alpha=list(alpha), density=density, scale=scale, seed=start)

    return _recipe("dare", children, weights, dtype, combine, base=base, density=density, scale=scale, seed=seed)


def model_stock(
    children: Sequence[ModelDirectory], weights: Weights, *, base: ModelDirectory, dtype: str | None = None
) -> Recipe:
    """Model stock: ``t · average + (1 − t) · base``, t from the angle between the task vectors of each tensor.

    Jang et al. 2024, arXiv:2403.19522.
    """
    if len(children) < 2:
        raise BadInput("model stock needs two models or more beside the base", "Give another fine-tuned model")

    def combine(one: Match, alpha: Sequence[float]) -> Combine:
        return functools.partial(_model_stock_terms, alpha=list(alpha))

    return _recipe("model_stock", children, weights, dtype, combine, base=base)


def _recipe(
    name: str,
    children: Sequence[ModelDirectory],
    weights: Weights,
    dtype: str | None,
    combine: Callable[[Match, Sequence[float]], Combine],
    *,
    base: ModelDirectory | None = None,
    **notes: float,
) -> Recipe:
    everyone = [*children, base] if base else list(children)
    matches = match(everyone, dtype)
    alpha = alpha_for(weights, children)
    tensors = []
    for one in matches:
        if one.is_float:
            terms = tuple(Term(child, own) for child, own in enumerate(one.names))
            tensors.append(TensorRecipe(one.name, one.shape, one.dtype, terms, combine(one, alpha(one.name))))
        else:
            tensors.append(linear(one, [1.0 / len(everyone)] * len(everyone)))
    return Recipe(name, output_config(children[0].config, matches), tuple(tensors), recorded(weights), notes)


def _fraction(name: str, value: float) -> None:
    if not 0.0 < value <= 1.0:
        raise BadInput(f"{name} is {value:g}", f"Give a {name} above 0 and at most 1")


def interpolate_on_sphere(a: Tensor, b: Tensor, t: float) -> Tensor:
    """``sin((1−t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b``, Ω the angle of *a* and *b*; straight where that is near 0 or π."""
    norms = a.double().norm() * b.double().norm()
    cosine = torch.dot(a.double().flatten(), b.double().flatten()) / norms if norms > 0 else torch.tensor(1.0)
    if abs(cosine) > 0.9995:
        return torch.lerp(a, b, t)
    angle = torch.arccos(cosine)
    return a * float(torch.sin((1 - t) * angle) / torch.sin(angle)) + b * float(torch.sin(t * angle) / torch.sin(angle))


def trim(vector: Tensor, density: float) -> Tensor:
    """*vector* with all but its ``round(density · numel)`` largest magnitudes set to zero, in place."""
    keep = max(1, round(density * vector.numel()))
    if keep < vector.numel():
        threshold = vector.abs().flatten().kthvalue(vector.numel() - keep + 1).values
        vector[vector.abs() < threshold] = 0.0
    return vector


def elect_and_average(vectors: Sequence[Tensor], alpha: Sequence[float]) -> Tensor:
    """The α-weighted mean, per entry, of those *vectors* whose sign is that of the weighted sum of all."""
    total = torch.zeros_like(vectors[0])
    for vector, a in zip(vectors, alpha, strict=True):
        total.add_(vector, alpha=a)
    sign = total.sign()
    mean, weight = torch.zeros_like(total), total.zero_()
    for vector, a in zip(vectors, alpha, strict=True):
        agrees = vector.sign() == sign
        agrees &= vector != 0
        mean.add_(vector * agrees, alpha=a)
        weight.add_(agrees, alpha=a)
    return mean.div_(weight.where(weight != 0, 1.0))


def drop_and_rescale(vector: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """*vector* with each entry kept with probability *density* and divided by it, else set to zero; in place."""
    return vector.mul_(torch.empty_like(vector).bernoulli_(density, generator=generator)).div_(density)


def stock_ratio(vectors: Sequence[Tensor]) -> float:
    """``t = n cos θ / (1 + (n − 1) cos θ)`` of model stock, cos θ the mean cosine between the *vectors*, in [0, 1]."""
    n = len(vectors)
    norms = [vector.double().norm() for vector in vectors]
    cosines = [
        float(torch.dot(vectors[i].double().flatten(), vectors[j].double().flatten()) / (norms[i] * norms[j]))
        if norms[i] > 0 and norms[j] > 0
        else 0.0
        for i in range(n)
        for j in range(i)
    ]
    cosine = min(1.0, max(0.0, sum(cosines) / len(cosines)))
    return n * cosine / (1 + (n - 1) * cosine)


def _slerp_terms(terms: list[Tensor], t: float) -> Tensor:
    return interpolate_on_sphere(terms[0], terms[1], t)


def _task_vectors(terms: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Each child minus the base, in place, and the base."""
    *children, base = terms
    return [child.sub_(base) for child in children], base


def _ties_terms(terms: list[Tensor], alpha: list[float], density: float, scale: float) -> Tensor:
    vectors, base = _task_vectors(terms)
    return base.add_(elect_and_average([trim(v, density) for v in vectors], alpha), alpha=scale)


def _dare_terms(terms: list[Tensor], alpha: list[float], density: float, scale: float, seed: int) -> Tensor:
    vectors, base = _task_vectors(terms)
    generator = torch.Generator().manual_seed(seed)
    for vector, a in zip(vectors, alpha, strict=True):
        base.add_(drop_and_rescale(vector, density, generator), alpha=scale * a)
    return base


def _model_stock_terms(terms: list[Tensor], alpha: list[float]) -> Tensor:
    vectors, base = _task_vectors(terms)
    ratio = stock_ratio(vectors)
    for vector, a in zip(vectors, alpha, strict=True):
        base.add_(vector, alpha=ratio * a)
    return base
