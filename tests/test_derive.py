"""Dials become levels, budgets become lengths, and the graph says what each node costs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ract.errors import BadInput
from ract.plan.derive import build_graph
from ract.plan.graph import Graph
from ract.plan.levels import levels
from ract.plan.schema import parse_plan
from ract.plan.shapes import leaf_shape

BASE: dict[str, Any] = {
    "name": "p",
    "data": {"train": ["stdlib"]},
    "tokenizer": {"vocab_size": 1024},
    "compact": {"hidden_size": 64, "num_hidden_layers": 2},
}


def graph_of(train_tokens: int = 1_000_000, **tables: Any) -> Graph:
    return build_graph(parse_plan({**BASE, **tables}), train_tokens)


@given(models=st.integers(2, 64), depth=st.integers(1, 4))
def test_dials_give_that_many_models_in_that_many_levels_or_say_what_would(models: int, depth: int) -> None:
    plan = parse_plan({**BASE, "tree": {"compact_models": models, "depth": depth}})
    try:
        found = levels(plan)
    except BadInput as error:
        assert "do not divide" in str(error)
        return
    product = 1
    for level in found:
        product *= level.size
    assert len(found) == depth and product == models
    assert [level.method for level in found] == ["merge"] * (depth - 1) + ["stack"]


def test_seven_models_do_not_divide_into_two_levels() -> None:
    with pytest.raises(BadInput, match=r"7 compact models do not divide into 2 levels.*6, 8, 9"):
        graph_of(tree={"compact_models": 7, "depth": 2})


@pytest.mark.parametrize(
    "compact",
    [
        {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 2},
        {"hidden_size": 100},
        {"parameters": "10k"},
        {"parameters": "1M", "hidden_size": 64},
        {"hidden_size": 64, "head_dim": 31},
    ],
)
def test_dials_that_contradict_each_other_are_refused(compact: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"\[compact\]"):
        leaf_shape(parse_plan({**BASE, "compact": compact}))


@given(budget=st.integers(300_000, 30_000_000))
def test_a_parameter_budget_is_kept_and_used(budget: int) -> None:
    shape = leaf_shape(parse_plan({**BASE, "compact": {"parameters": budget}}))
    assert 0.6 * budget <= shape.parameters <= budget


def test_the_tree_keeps_its_budget_and_the_baseline_gets_the_same_flops() -> None:
    graph = graph_of(tree={"compact_models": 8, "depth": 2}, budget={"flops": "3T"})
    total = graph.total_flops(graph.final)
    assert total == pytest.approx(3e12, rel=0.15)
    assert graph.baseline is not None
    assert graph.total_flops(graph.baseline) == pytest.approx(total, rel=0.02)
    assert graph[graph.baseline].shape == graph[graph.final].shape


def test_only_the_last_training_run_of_a_chain_decays_its_learning_rate() -> None:
    graph = graph_of(tree={"compact_models": 4, "depth": 2})
    decay = {node.method: node.train.decay for node in graph if node.train}
    assert decay["leaf"] == decay["branch"] == 0.0
    assert decay["heal"] > 0 and decay["baseline"] > 0
    alone = graph_of(level=[{"method": "merge", "members": 2, "branch": {}}])
    assert {n.method: n.train.decay for n in alone if n.train}["branch"] > 0


def test_stages_read_on_where_their_ancestors_stopped() -> None:
    graph = graph_of(tree={"compact_models": 6, "depth": 2}, budget={"flops": "1T"})
    leaf, heal = graph["leaf"].train, graph[graph.final].train
    branches = [node.train for node in graph if node.method == "branch" and node.train]
    assert leaf is not None and heal is not None
    assert [b.shard for b in branches] == [(i, len(branches)) for i in range(len(branches))]
    assert all(b.start_tokens * len(branches) == pytest.approx(leaf.tokens, abs=len(branches)) for b in branches)
    read = leaf.tokens + sum(b.tokens for b in branches)
    assert heal.start_tokens == pytest.approx(read, abs=len(branches))


def test_members_without_branches_are_whole_trees_of_their_own() -> None:
    graph = graph_of(
        level=[
            {"method": "merge", "members": 2, "branch": {"vary": ["seed"]}},
            {"method": "ensemble", "members": 3},
        ]
    )
    leaves = [node for node in graph if node.method == "leaf"]
    assert len(leaves) == 3 and len({node.seed for node in leaves}) == 3
    assert len([n for n in graph if n.method == "branch"]) == 6
    assert len({node.name for node in graph}) == len(graph.nodes)


def test_branches_take_their_own_hyperparameters() -> None:
    graph = graph_of(level=[{"method": "merge", "members": 2, "branch": {"each": {"lr": [1e-3, 2e-3]}}}])
    assert [n.train.lr for n in graph if n.method == "branch" and n.train] == [1e-3, 2e-3]


def test_epochs_count_the_shard_of_a_branch() -> None:
    compact = {**BASE["compact"], "train": {"epochs": 2.0}}
    graph = graph_of(100_000, compact=compact, level=[{"method": "merge", "members": 4, "branch": {"epochs": 1.0}}])
    tokens = {node.method: node.train.tokens for node in graph if node.train}
    assert tokens["leaf"] == pytest.approx(200_000, abs=4096)
    assert tokens["branch"] == pytest.approx(25_000, abs=4096)


def test_threads_do_not_depend_on_what_is_left_to_do() -> None:
    graph = graph_of(tree={"compact_models": 8, "depth": 2})
    assert graph.beside("leaf") == 2  # the baseline
    branches = [n.name for n in graph if n.method == "branch"]
    assert {graph.beside(b) for b in branches} == {len(branches) + 1}
