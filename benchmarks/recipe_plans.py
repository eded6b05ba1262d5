"""Recipes as plans of equal cost: each is a tree with shares of the budget, and lengths are solved for in tokens.

What a node costs is what ``ract.plan`` counts (``Graph.total_flops``): training, teachers, the search for α, and every
node that is used on the way and then left behind. So a recipe cannot spend more than another by its construction.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.recipe_corpora import BATCH_TOKENS, Setting, parse_shape
from benchmarks.recipe_trees import Recipe, Tree, Values
from ract.errors import RactError
from ract.plan.derive import build_graph
from ract.plan.graph import Graph, Node
from ract.plan.schema import parse_plan

_EVALUATIONS = 6
_FIRST_GUESS = 1000 * BATCH_TOKENS
_LARGE_TEXT = 100_000_000  # tokens: no plan of a text that is not small depends on how many there are
_FEWEST_STEPS = 4


def plan_of(
    recipe: Recipe, setting: Setting, values: Values, files: Mapping[str, Path], *, seed: int, fraction: float = 1.0
) -> dict[str, Any]:
    """The plan of *recipe*, with lengths that take *fraction* of the budget (times ``values.share``), at most one
    optimizer step less.

    Raises RactError where the budget is too small for the recipe's stages.
    """
    tree = recipe.tree(setting, values)
    plan = _without_lengths(recipe.name, tree, setting, values, files, seed)
    budget = setting.flops * fraction * values.share
    graph, longer = (_with_lengths(plan, tree, setting, tokens) for tokens in (_FIRST_GUESS, 2 * _FIRST_GUESS))
    fixed = sum(graph.own_flops(node.name) for node in graph if node.train is None)
    each = {stage: (_cost(longer, stage) - _cost(graph, stage)) / _FIRST_GUESS for stage in tree.shares}
    # What a stage takes whatever its length: teachers are asked once where the text is small.
    before = {stage: _cost(graph, stage) - each[stage] * _FIRST_GUESS for stage in tree.shares}
    last = list(tree.shares)[-1]
    for stage, share in tree.shares.items():
        left = budget - fixed
        if stage == last:  # the last stage gets what rounding has left of the others
            left -= sum(before[s] + each[s] * _stage(plan, s)["tokens"] for s in tree.shares if s != last)
            share = 1.0  # noqa: PLW2901
        steps = math.floor((left * share - before[stage]) / each[stage] / BATCH_TOKENS + 1e-6)
        if steps < _FEWEST_STEPS:
            raise RactError(f"{recipe.name}: {budget:.3g} FLOPs are too few for its stage {stage}")
        _stage(plan, stage)["tokens"] = steps * BATCH_TOKENS
    return plan


def graph_of(plan: Mapping[str, Any], setting: Setting) -> Graph:
    """The graph of a plan of *setting* whose lengths are in tokens."""
    return build_graph(parse_plan(dict(plan)), setting.most_tokens or _LARGE_TEXT)


def _with_lengths(plan: dict[str, Any], tree: Tree, setting: Setting, tokens: int) -> Graph:
    """The graph where every stage trains on so many *tokens*."""
    guess = copy.deepcopy(plan)
    for stage in tree.shares:
        _stage(guess, stage)["tokens"] = tokens
    return graph_of(guess, setting)


def toml_of(plan: Mapping[str, Any]) -> str:
    """*plan* as a plan file: tables for its parts, inline tables below them."""
    lines = [f"{key} = {_toml(value)}" for key, value in plan.items() if not isinstance(value, (dict, list))]
    for key, value in plan.items():
        tables = [(f"[{key}]", value)] if isinstance(value, dict) else []
        tables = [(f"[[{key}]]", one) for one in value] if isinstance(value, list) else tables
        for head, table in tables:
            lines += ["", head, *(f"{name} = {_toml(one)}" for name, one in table.items())]
    return "\n".join(lines) + "\n"


def _without_lengths(
    name: str, tree: Tree, setting: Setting, values: Values, files: Mapping[str, Path], seed: int
) -> dict[str, Any]:
    blocks, width = parse_shape(tree.leaf)
    data: dict[str, Any] = {"train": [str(files["train"])], "valid": [str(files["valid"])]}
    train: dict[str, Any] = {"batch_tokens": BATCH_TOKENS, "block_size": setting.block_size, "lr": values.lr}
    train |= {"weight_decay": values.weight_decay, "dropout": values.dropout, "ema": values.ema}
    # As patient as there are evaluations: no run stops early, each ends with the best weights that it has seen.
    train |= {"evaluations": _EVALUATIONS, "patience": _EVALUATIONS}
    return {
        "name": name,
        "seed": seed,
        "data": data | {"test_fraction": 0.0},  # the test text is read once, when the run is done, and not by it
        "tokenizer": {"vocab_size": setting.vocab_size},
        "train": {key: value for key, value in train.items() if value != 0.0 or key == "weight_decay"},
        "compact": {"hidden_size": setting.width(width), "num_hidden_layers": blocks, "train": {}},
        "level": [copy.deepcopy(level) for level in tree.levels],
        "baseline": {"enabled": False},
    }


def _stage(plan: dict[str, Any], stage: str) -> dict[str, Any]:
    if stage == "leaf":
        return plan["compact"]["train"]
    number, _, key = stage.partition(".")
    return plan["level"][int(number) - 1].setdefault(key, {})


def _cost(graph: Graph, stage: str) -> float:
    return sum(graph.own_flops(node.name) for node in graph if stage_of(node) == stage)


def stage_of(node: Node) -> str:
    """The stage of a trained node, as :class:`Tree` calls it; "" for an aggregated one."""
    if node.train is None:
        return ""
    return "leaf" if node.method == "leaf" else f"{node.level}.{'student' if node.method == 'distill' else node.method}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return repr(value)
