"""The levels of a plan, as written or from the dials."""

from __future__ import annotations

from itertools import islice

from ract.errors import BadInput
from ract.plan.schema import LevelTable, Plan
from ract.plan.tables import BranchTable, HealTable


def levels(plan: Plan) -> list[LevelTable]:
    """The plan's levels, as written or from the dials: merges of branches below, one growth in depth on top."""
    if plan.tree is None:
        return list(plan.level)
    factors = _factors(plan.tree.compact_models, plan.tree.depth)
    if factors is None:
        asked, depth = plan.tree.compact_models, plan.tree.depth
        near = sorted(range(2, asked + 2 ** (depth + 1)), key=lambda n: abs(n - asked))
        close = sorted(islice((n for n in near if _factors(n, depth)), 3))
        raise BadInput(
            f"[tree]: {plan.tree.compact_models} compact models do not divide into {plan.tree.depth} levels",
            f"Use a number that does, such as {', '.join(map(str, close))}, or another depth",
        )
    *below, top = factors
    merges = [LevelTable(method="merge", members=m, branch=BranchTable(), weights="learned") for m in below]
    return [*merges, LevelTable(method="stack", copies=top, heal=HealTable())]


def _factors(number: int, parts: int) -> list[int] | None:
    """*number* as *parts* factors ≥ 2, as even as possible, the smallest first; None where impossible."""
    if parts == 1:
        return [number] if number >= 2 else None
    root = round(number ** (1 / parts))
    for first in sorted(range(2, number // 2 + 1), key=lambda f: (abs(f - root), f)):
        if number % first == 0:
            rest = _factors(number // first, parts - 1)
            if rest:
                return sorted([first, *rest])
    return None
