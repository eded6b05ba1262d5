"""What a method asks for: each tensor of the parent, as a formula over tensors of the children.

All four methods are the one formula ``Θ = Σ αᵢ Eᵢ(θᵢ)``. A method therefore does not touch tensors itself: it writes a
:class:`Recipe`, and the engine carries it out chunk by chunk, whatever the size of the models. Recipes compose: a term
that reads a parent which is itself a linear recipe can be replaced by that recipe's terms with multiplied coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Term:
    """``weight · child[name]``: *child* counts from 0 in the order the models were given."""

    child: int
    name: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TensorRecipe:
    """One tensor of the parent: ``Σ weight · child[name]`` over *terms*, accumulated in fp32, rounded once to *dtype*.

    *shape* and *dtype* (safetensors' spelling: F32, BF16, F16, I64, …) are those of the parent's tensor.
    *function*, where given, replaces the sum: it takes the terms' tensors, whole, in fp32 and in order, and returns the
    parent's (slerp, TIES and other refinements that are not linear). *constant* is for what no child has (a router).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    terms: tuple[Term, ...] = ()
    function: Callable[[list[torch.Tensor]], torch.Tensor] | None = None
    constant: Callable[[], torch.Tensor] | None = None

    @property
    def is_linear(self) -> bool:
        """Whether the tensor is exactly its weighted sum, so that it can be streamed and collapsed."""
        return self.function is None and self.constant is None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole parent: its ``config.json``, its tensors, and what else to copy from the first child.

    *weights* is α as it goes into the lineage; *notes* what a method wants recorded (ranges, router kind, densities).
    """

    method: str
    config: dict[str, Any]
    tensors: tuple[TensorRecipe, ...]
    weights: list[float] | dict[str, list[float]]
    notes: Mapping[str, Any] = field(default_factory=dict)
