"""α as the engine needs it: uniform, given, or learned on held-out batches; and the batches themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ract.aggregate.weights import given, uniform
from ract.checkpoint.directory import ModelDirectory
from ract.errors import BadInput

if TYPE_CHECKING:
    from ract.aggregate.engine import Progress
    from ract.aggregate.weights import LearnedWeights

Alpha = list[float] | dict[str, list[float]]
Asked = str | Sequence[float] | Mapping[str, Sequence[float]]
Batches = Sequence[Mapping[str, Any]]


def held_out_batches(data: Sequence[str] | Batches | None, task: str, model: ModelDirectory) -> tuple[Batches, Batches]:
    """Batches to choose by, and a third of them that no choice sees (none where there are fewer than three).

    *data* is batches already, or files for *task*, read with the tokenizer of *model*.
    """
    batches: list[Any] = list(data or ())
    if batches and all(isinstance(one, (str, Path)) for one in batches):
        from ract.data.heldout import load_batches

        batches = load_batches(model.path, task, [str(one) for one in batches])
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

    Raises BadInput as :func:`ract.aggregate.weights.given` does.
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
