"""α as the engine needs it: uniform, given, or learned on held-out batches; and the batches themselves.

Importing this does not load ``transformers``: a merge with α that is known needs none of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ract.checkpoint.directory import ModelDirectory
from ract.errors import BadInput

if TYPE_CHECKING:
    from ract.aggregate.engine import Progress
    from ract.aggregate.weights import LearnedWeights

Alpha = list[float] | dict[str, list[float]]
Asked = str | Sequence[float] | Mapping[str, Sequence[float]]
Batches = Sequence[Mapping[str, Any]]
# Files give at most so many batches (of 8 × 256 tokens): more make the search slower and α hardly better.
LIMIT = 24
_TOLERANCE = 1e-6


def uniform(n: int) -> list[float]:
    """``1/n`` for each of *n* children."""
    return [1.0 / n] * n


def given(weights: str | Sequence[float], n: int, normalize: bool = False, affine: bool = False) -> list[float]:
    """The user's α for *n* children, from ``".6,.4"`` or a list.

    Raises BadInput: not numbers, not finite, not *n* of them, negative (unless *affine*), a sum that is zero, or a sum
    off 1 by more than 1e-6 (unless *normalize*, which divides by it).
    """
    parts = re.split(r"[,\s]+", weights.strip(" ,")) if isinstance(weights, str) else weights
    try:
        alpha = [float(part) for part in parts]
    except (TypeError, ValueError) as error:
        raise BadInput(f"weights {weights!r} are not numbers", "Write them like .6,.4") from error
    if len(alpha) != n:
        raise BadInput(f"{len(alpha)} weights were given for {n} models", "Give one weight per model")
    if not all(math.isfinite(a) for a in alpha):
        raise BadInput(f"weights {alpha} are not all finite", "Write them like .6,.4")
    if not affine and min(alpha) < 0:
        raise BadInput(f"weight {min(alpha):g} is negative", "Give --affine if weights below zero are meant")
    total = math.fsum(alpha)
    if abs(total) <= _TOLERANCE:
        raise BadInput(f"weights {alpha} sum to zero", "They must sum to 1")
    if abs(total - 1.0) <= _TOLERANCE:
        return alpha
    if not normalize:
        raise BadInput(f"weights {alpha} sum to {total:g}, not 1", "Give --normalize to divide them by their sum")
    return [a / total for a in alpha]


def held_out_batches(
    data: Sequence[str] | Batches | None, task: str | None, model: ModelDirectory, limit: int | None = None
) -> tuple[Batches, Batches]:
    """Batches to choose by, and a third of them that no choice sees (none where there are fewer than three).

    *data* is batches already, a list of them for each child, or files for *task* (None: what *model* is made for), read
    with the tokenizer of *model*; at most *limit* are taken.
    """
    batches: list[Any] = list(data or ())
    if batches and all(isinstance(one, (str, Path)) for one in batches):
        from ract.data.heldout import load_batches

        batches = load_batches(model.path, task, [str(one) for one in batches], limit=limit)
    if batches and not isinstance(batches[0], Mapping):
        return batches, []  # a list of batches for each child, for methods that measure every child on its own data
    batches = batches[:limit]
    if len(batches) < 3:
        return batches, []
    return [batch for number, batch in enumerate(batches) if number % 3 != 2], batches[2::3]


def resolve(
    asked: Asked,
    children: Sequence[ModelDirectory],
    *,
    normalize: bool = False,
    affine: bool = False,
) -> Alpha:
    """Uniform or given α, one number per child or ``{group: α}``, summing to 1 to the last bit.

    Raises BadInput as :func:`given` does.
    """
    count = len(children)
    if isinstance(asked, Mapping):
        return {group: exactly_one(given(alpha, count, normalize, affine)) for group, alpha in asked.items()}
    if asked == "uniform":
        return uniform(count)
    return exactly_one(given(asked, count, normalize, affine))


def learned(
    children: Sequence[ModelDirectory],
    batches: Batches,
    held_out: Batches,
    *,
    per: str,
    affine: bool,
    seed: int,
    progress: Progress | None,
) -> tuple[Alpha, LearnedWeights]:
    """α learned for a merge of *children*, and what it is worth. Raises BadInput without batches."""
    if not batches:
        raise BadInput("learned weights need held-out data", "Give --data, or use uniform weights")
    from ract.aggregate.weights import learn

    result = learn(
        [child.path for child in children],
        batches,
        held_out,
        per=per,  # type: ignore[arg-type]
        affine=affine,
        seed=seed,
        progress=progress,
    )
    if isinstance(result.weights, dict):
        return {group: exactly_one(alpha) for group, alpha in result.weights.items()}, result
    return exactly_one(result.weights), result


def exactly_one(alpha: Sequence[float]) -> list[float]:
    """α divided by its sum, which is 1 within 1e-6: equal children must come back to the last bit."""
    total = sum(alpha)
    return [float(a) / total for a in alpha]
