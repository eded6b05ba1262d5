"""The lineage of an aggregation: parents, effective coefficients of the leaves, what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ract.aggregate.collapse import leaf_coefficients
from ract.aggregate.methods import Method
from ract.aggregate.recipe import Recipe
from ract.checkpoint.lineage import Cost, Lineage, Parent, read_lineage

if TYPE_CHECKING:
    from ract.aggregate.verify import Verification
    from ract.aggregate.weights import LearnedWeights


def lineage(
    name: str,
    method: Method,
    recipe: Recipe,
    parents: Sequence[tuple[Path, str]],
    *,
    learned: LearnedWeights | None,
    seen: Verification | None,
) -> Lineage:
    """The record of the node *name* made by *recipe* over *parents*, paths with their content hashes.

    For a linear method ``leaves`` has the coefficient of every leaf: looked through parents that are linear themselves,
    and, where α differs by tensor, averaged over all elements.
    """
    below = {path: read_lineage(path) for path, _ in parents}
    leaves: dict[str, float] = {}
    if method.linear:
        coefficients = leaf_coefficients(recipe.tensors, len(parents))
        for (path, content), coefficient in zip(parents, coefficients, strict=True):
            own = below[path]
            for leaf, share in (own.leaves if own and own.leaves else {content: 1.0}).items():
                leaves[leaf] = leaves.get(leaf, 0.0) + coefficient * share
    known = [one for one in below.values() if one]
    before, after = measured(learned, seen)
    return Lineage(
        name=name,
        level=1 + max((one.level for one in known), default=0),
        method=method.name,
        weights=recipe.weights,
        parents=[Parent(name=path.name, content=content, path=str(path)) for path, content in parents],
        leaves=leaves,
        plan=dict(recipe.notes),
        cost=Cost(total_flops=sum(one.cost.total_flops for one in known)),
        metrics_before=before,
        metrics_after=after,
    )


def measured(learned: LearnedWeights | None, seen: Verification | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was measured of the children, and of the parent."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    if learned is not None:
        before = {"loss_children": learned.loss_children, "held_out_children": learned.held_out_children}
        after = {
            name: getattr(learned, name)
            for name in ("chosen", "loss", "loss_uniform", "held_out_loss", "held_out_uniform")
        }
    if seen is not None:
        after["verification"] = asdict(seen)
    return before, after
