"""The recipes of ``benchmarks/recipes.py``: the trees that spend the budget, ours and the controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from benchmarks.recipe_corpora import Setting, parse_shape
from ract.errors import BadInput, nearest


@dataclass(frozen=True)
class Values:
    """What is tuned. *share* is the part of the budget that is spent: fewer epochs may be better on little text.

    *members* is the number of an ensemble's leaves, *leaf* their shape, *size* the final shape of what may choose it
    ("" where not searched), *grow_at* the part of the budget after which a leaf is stacked, *split* the part that an
    ensemble has before it is distilled, *student_dropout* and *student_weight_decay* the student's own ("": those
    of the leaves).
    """

    lr: float = 3e-3
    weight_decay: float = 0.1
    dropout: float = 0.0
    ema: float = 0.0
    share: float = 1.0
    members: int = 4
    size: str = ""
    grow_at: float = 0.35
    leaf: str = ""
    split: float = 0.5
    student_dropout: float | Literal[""] = ""
    student_weight_decay: float | Literal[""] = ""

    def label(self) -> str:
        """The values in a file name."""
        return "-".join(f"{key}={value}" for key, value in asdict(self).items() if value != "")


@dataclass(frozen=True)
class Tree:
    """A recipe before its lengths are known: the leaf's shape, the levels, and each training stage's share of FLOPs.

    A stage is ``leaf`` or ``<level>.branch``, ``<level>.heal``, ``<level>.student``, with levels counted from 1.
    """

    leaf: str
    shares: Mapping[str, float]
    levels: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A way to spend the budget: *ours* or a control (*control* says which of the seven, 0 for none)."""

    name: str
    tree: Callable[[Setting, Values], Tree]
    ours: bool
    english: str
    chinese: str
    control: int = 0
    settings: tuple[str, ...] = ("compute", "data")


def _single(setting: Setting, values: Values) -> Tree:
    return Tree(setting.final, {"leaf": 1.0})


def _best_single(setting: Setting, values: Values) -> Tree:
    return Tree(values.size or setting.final, {"leaf": 1.0})


def _child_alone(setting: Setting, values: Values) -> Tree:
    return Tree(values.leaf or setting.leaf, {"leaf": 1.0})


def _stack(setting: Setting, values: Values) -> Tree:
    copies = _hops(setting)[0]
    return _grown(setting, (copies,), (values.grow_at, 1 - values.grow_at))


def _best_stack(setting: Setting, values: Values) -> Tree:
    return _stack(replace(setting, final=values.size or setting.final), values)


def _grow_one_block(setting: Setting, values: Values) -> Tree:
    return _grown(setting, (parse_shape(setting.final)[0],), (values.grow_at, 1 - values.grow_at))


def _two_hops(setting: Setting, values: Values) -> Tree:
    copies = _hops(setting)[0]
    factors = (2, copies // 2) if copies % 2 == 0 else (parse_shape(setting.final)[0] // copies, copies)
    return _grown(setting, factors, (0.2, 0.2, 0.6))


def _three_hops(setting: Setting, values: Values) -> Tree:
    return _grown(setting, (2, 2, 2), (0.12, 0.13, 0.15, 0.6))


def _merge(setting: Setting, values: Values) -> Tree:
    return Tree(setting.final, {"leaf": 0.6, "1.branch": 0.4}, (_MERGE,))


def _merge_stack(setting: Setting, values: Values) -> Tree:
    copies = _hops(setting)[0]
    levels = (_MERGE, {"method": "stack", "copies": copies, "heal": {}})
    return Tree(_part(setting, copies), {"leaf": 0.22, "1.branch": 0.13, "2.heal": 0.65}, levels)


def _upcycle(setting: Setting, values: Values) -> Tree:
    branch = {"vary": ["data"]}
    levels = ({"method": "upcycle", "members": 2, "branch": branch, "heal": {}},)
    return Tree(_part(setting, 2), {"leaf": 0.4, "1.branch": 0.2, "1.heal": 0.4}, levels)


def _ensemble(setting: Setting, values: Values) -> Tree:
    return Tree(values.leaf or setting.leaf, {"leaf": 1.0}, (_ensemble_of(values.members),))


def _ensemble_distil(setting: Setting, values: Values) -> Tree:
    own = {"dropout": values.student_dropout, "weight_decay": values.student_weight_decay}
    given = {key: value for key, value in own.items() if value != ""}
    levels = (_ensemble_of(values.members), {"method": "distill", **({"student": given} if given else {})})
    return Tree(values.leaf or setting.leaf, {"leaf": values.split, "2.student": 1 - values.split}, levels)


def _ensemble_distil_stack(setting: Setting, values: Values) -> Tree:
    levels = (_ensemble_of(values.members), {"method": "distill"}, {"method": "stack", "copies": 2, "heal": {}})
    return Tree(values.leaf or setting.leaf, {"leaf": 0.5, "2.student": 0.2, "3.heal": 0.3}, levels)


def _students(setting: Setting, values: Values) -> Tree:
    levels = (_ensemble_of(values.members), {"method": "distill", "teacher": "shared"}, _ensemble_of(2))
    return Tree(values.leaf or setting.leaf, {"leaf": 0.5, "2.student": 0.5}, levels)


def _distil_twice(setting: Setting, values: Values) -> Tree:
    first, second = _students(setting, values).levels, {"method": "distill"}
    return Tree(
        values.leaf or setting.leaf, {"leaf": 0.4, "2.student": 0.35, "4.student": 0.25}, (*first[:2], first[2], second)
    )


_MERGE = {"method": "merge", "members": 2, "branch": {"vary": ["data"]}, "weights": "learned"}


def _ensemble_of(members: int) -> dict[str, Any]:
    return {"method": "ensemble", "members": members}


def _hops(setting: Setting) -> tuple[int, int]:
    """Copies of one hop to the final depth, and the blocks before it: four times where that divides, else three."""
    blocks = parse_shape(setting.final)[0]
    copies = 4 if blocks % 4 == 0 and blocks >= 8 else 3 if blocks % 3 == 0 else 2
    return copies, blocks // copies


def _part(setting: Setting, copies: int) -> str:
    blocks, width = parse_shape(setting.final)
    return f"{blocks // copies}x{width}"


def _grown(setting: Setting, factors: tuple[int, ...], shares: tuple[float, ...]) -> Tree:
    levels = tuple({"method": "stack", "copies": copies, "heal": {}} for copies in factors)
    names = ["leaf", *(f"{number}.heal" for number in range(1, len(factors) + 1))]
    return Tree(_part(setting, math.prod(factors)), dict(zip(names, shares, strict=True)), levels)


_C, _D = ("compute",), ("data",)
RECIPES: dict[str, Recipe] = {
    one.name: one
    for one in (
        Recipe("single", _single, False, "one model of the final size", "最终大小的单个模型", 1),
        Recipe("best-single", _best_single, False, "the best single model of any size", "任意大小中最好的单个模型", 2),
        Recipe(
            "child-alone",
            _child_alone,
            False,
            "one leaf, with the whole budget to spend",
            "单个叶子，可用全部预算",
            0,
            _D,
        ),
        Recipe("stack", _stack, True, "a leaf, stacked once, healed", "叶子堆叠一次后修复", 3),
        Recipe("best-stack", _best_stack, True, "stacked once, the final size chosen", "堆叠一次，最终大小可选", 0, _C),
        Recipe("one-block", _grow_one_block, False, "one block, grown once to full depth", "单个块一次长到全深", 4, _C),
        Recipe("ensemble", _ensemble, False, "leaves of their own seeds, outputs averaged", "不同种子的叶子取平均", 5),
        Recipe("merge", _merge, False, "branches of the final size, merged", "最终大小的分支合并", 6),
        Recipe("two-hops", _two_hops, False, "growth in two hops", "分两步增长", 7, _C),
        Recipe("three-hops", _three_hops, False, "growth in three hops", "分三步增长", 7, _C),
        Recipe("merge-stack", _merge_stack, True, "branches merged, stacked, healed", "分支合并、堆叠、修复"),
        Recipe("upcycle", _upcycle, True, "branches as experts, healed", "分支成为专家后修复"),
        Recipe("ensemble-distil", _ensemble_distil, True, "an ensemble, distilled to one leaf", "集成蒸馏为单个叶子"),
        Recipe(
            "ensemble-distil-stack",
            _ensemble_distil_stack,
            True,
            "distilled to one leaf, stacked twice, healed",
            "蒸馏为单个叶子后堆叠两份并修复",
            0,
            _D,
        ),
        Recipe("students", _students, True, "an ensemble of two distilled students", "两个蒸馏学生的集成", 0, _D),
        Recipe(
            "distil-twice", _distil_twice, True, "the students' ensemble, distilled again", "学生的集成再蒸馏", 0, _D
        ),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe called *name*; ``single-4x128`` is the single model of that shape."""
    if name in RECIPES:
        return RECIPES[name]
    size = name.removeprefix("single-")
    blocks, _, width = size.partition("x")
    if size != name and blocks.isdigit() and width.isdigit():
        return Recipe(name, lambda s, v: Tree(size, {"leaf": 1.0}), False, f"single, {size}", f"单个模型 {size}")
    raise BadInput(f'there is no recipe "{name}"', nearest(name, RECIPES))
