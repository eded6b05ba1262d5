"""Every method by name: one line, its paper, what it needs. Importing this loads neither torch nor the methods."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from ract.aggregate.recipe import Recipe
from ract.errors import BadInput, nearest


@dataclass(frozen=True)
class Method:
    """A method as ``ract list methods`` shows it; *where* is ``module:function`` of its recipe.

    *needs_base*: the common ancestor must be given, and reaches the recipe as ``base=``, its tensors being those of one
    more child. *needs_data*: held-out batches reach the recipe as ``batches=``. *linear*: every tensor is a weighted
    sum of the children's, so that the lineage can say what share each leaf has.
    """

    name: str
    summary: str
    paper: str
    where: str
    needs_base: bool = False
    needs_data: bool = False
    linear: bool = False

    @property
    def recipe(self) -> Callable[..., Recipe]:
        """The function ``(children, weights, **options) -> Recipe``; its module is imported now."""
        module, function = self.where.split(":")
        return getattr(importlib.import_module(module), function)


_REFINE = "ract.aggregate.refine"
_DATA_DRIVEN = "ract.aggregate.datadriven"

_ALL = (
    Method(
        "merge",
        "average of the weights, Σ α θ",
        "Wortsman et al. 2022, arXiv:2203.05482",
        "ract.aggregate.merge:recipe",
        linear=True,
    ),
    Method(
        "slerp",
        "two models along the arc between them, not the chord",
        "Shoemake 1985, doi:10.1145/325165.325242",
        f"{_REFINE}:slerp",
    ),
    Method(
        "task_arithmetic",
        "the base plus scaled task vectors, θ₀ + λ Σ α (θ − θ₀)",
        "Ilharco et al. 2023, arXiv:2212.04089",
        f"{_REFINE}:task_arithmetic",
        needs_base=True,
        linear=True,
    ),
    Method(
        "ties",
        "task vectors trimmed to their largest entries, signs elected, those that agree averaged",
        "Yadav et al. 2023, arXiv:2306.01708",
        f"{_REFINE}:ties",
        needs_base=True,
    ),
    Method(
        "dare",
        "task vectors with random entries dropped and the rest scaled up, then added",
        "Yu et al. 2024, arXiv:2311.03099",
        f"{_REFINE}:dare",
        needs_base=True,
    ),
    Method(
        "model_stock",
        "between base and average, as far as the angle between the task vectors says",
        "Jang et al. 2024, arXiv:2403.19522",
        f"{_REFINE}:model_stock",
        needs_base=True,
    ),
    Method(
        "fisher",
        "average weighted by how sure each model is of each weight (diagonal Fisher information)",
        "Matena & Raffel 2022, arXiv:2111.09832",
        f"{_DATA_DRIVEN}:fisher",
        needs_data=True,
    ),
    Method(
        "regmean",
        "linear layers that reproduce all children's outputs best (least squares)",
        "Jin et al. 2023, arXiv:2212.09849",
        f"{_DATA_DRIVEN}:regmean",
        needs_data=True,
    ),
    Method(
        "greedy_soup",
        "children added best first while the held-out loss falls",
        "Wortsman et al. 2022, arXiv:2203.05482",
        f"{_DATA_DRIVEN}:greedy_soup",
        needs_data=True,
        linear=True,
    ),
    Method(
        "stack",
        "blocks of the children on top of each other: a deeper model",
        "Du et al. 2024, arXiv:2405.15319",
        "ract.aggregate.stack:recipe",
    ),
    Method(
        "upcycle",
        "feed-forwards become the experts of a mixture of experts",
        "Sukhbaatar et al. 2024, arXiv:2403.07816",
        "ract.aggregate.upcycle:recipe",
    ),
    Method(
        "ensemble",
        "children side by side in one model, outputs added with α",
        "Li et al. 2022, arXiv:2208.03306",
        "ract.aggregate.ensemble:recipe",
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def method(name: str) -> Method:
    """The method called *name* (``task-arithmetic`` is ``task_arithmetic``); BadInput with the nearest name."""
    known = METHODS.get(name.replace("-", "_").lower())
    if known is None:
        raise BadInput(f'there is no method "{name}"', nearest(name, METHODS))
    return known
