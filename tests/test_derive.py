"""Dials become levels, budgets become lengths, and the graph says what each node costs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ract.cost import CheckpointShape
from ract.errors import BadInput
from ract.plan.derive import build_graph
from ract.plan.graph import DataSize, Graph, Origin
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
    assert total == pytest.approx(3e12, rel=0.02)  # the search for α included
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


CLASSES: dict[str, Any] = {
    "name": "c",
    "data": {"task": "classification", "train": ["a.jsonl"]},
    "tokenizer": {"vocab_size": 1024},
    "compact": {"hidden_size": 64, "num_hidden_layers": 2},
}
PAIRS: dict[str, Any] = CLASSES | {
    "data": {"task": "translation", "train": ["a.en", "a.de"], "source_language": "en", "target_language": "de"}
}
SIZE = DataSize(tokens=200_000, domains={"a": 150_000, "b": 50_000}, text_tokens=400_000, labels=3)


def task_graph(base: dict[str, Any], origin: Origin | None = None, **tables: Any) -> Graph:
    return build_graph(parse_plan({**base, **tables}), SIZE, origin)


def test_a_classifier_starts_from_pre_training_made_once_for_all_trees() -> None:
    compact = CLASSES["compact"] | {"pretrain": {"epochs": 1.0}}
    levels_ = [{"method": "ensemble", "members": 2}, {"method": "distill"}]
    graph = task_graph(CLASSES, compact=compact, level=levels_)
    names = [node.name for node in graph]
    assert names == ["pretrain", "leaf-of-1", "leaf-of-2", "level-1-ensemble", "level-2-distill", "baseline"]
    pretrain, leaf, student = graph["pretrain"], graph["leaf-of-1"], graph["level-2-distill"]
    assert pretrain.train and pretrain.train.objective == "masked" and pretrain.shape.num_labels == 0  # type: ignore[union-attr]
    assert leaf.train and leaf.train.objective == "classification" and leaf.shape.num_labels == 3  # type: ignore[union-attr]
    assert leaf.parents == student.parents == ("pretrain",) and student.teachers == ("level-1-ensemble",)
    assert student.shape == leaf.shape and student.train and student.train.distill == 0.9
    assert graph["baseline"].parents == ("pretrain",)
    assert graph.total_flops("baseline") == pytest.approx(graph.total_flops(graph.final), rel=0.01)
    assert pretrain.train.tokens == pytest.approx(400_000, rel=0.02)


def test_the_baseline_of_an_ensemble_is_one_wider_model_with_pre_training_of_its_own() -> None:
    compact = CLASSES["compact"] | {"pretrain": {"epochs": 1.0}}
    graph = task_graph(CLASSES, compact=compact, level=[{"method": "ensemble", "members": 3}])
    baseline, final = graph["baseline"], graph[graph.final]
    assert baseline.parents == ("baseline-pretrain",)
    assert baseline.shape.parameters <= final.shape.parameters < 1.5 * baseline.shape.parameters
    assert graph.own_flops("baseline-pretrain") == pytest.approx(graph.own_flops("pretrain"), rel=0.05)
    assert graph.total_flops("baseline") == pytest.approx(graph.total_flops(graph.final), rel=0.02)


def test_branches_by_domain_read_their_domain_as_often_as_the_plan_says() -> None:
    data = {"task": "classification", "domains": {n: {"train": [f"{n}.jsonl"]} for n in "ab"}}
    branch = {"epochs": 2.0, "vary": ["domain"]}
    graph = task_graph(CLASSES, data=data, level=[{"method": "merge", "members": 2, "branch": branch}])
    found = {node.train.domain: node.train for node in graph if node.method == "branch" and node.train}
    assert found["a"].tokens == pytest.approx(300_000, rel=0.02) and found["b"].tokens == pytest.approx(
        100_000, rel=0.02
    )
    assert all(spec.shard == (0, 1) and spec.start_tokens == 0 for spec in found.values())


def test_a_budget_is_shared_by_all_the_trees_of_a_level() -> None:
    one = task_graph(PAIRS, budget={"flops": "10T"}, level=[{"method": "ensemble", "members": 4}])
    assert one.total_flops(one.final) == pytest.approx(10e12, rel=0.02)
    assert one["baseline"].shape.kind == "encoder-decoder" and one["baseline"].shape.members == 1


def test_a_checkpoint_stands_in_the_leafs_place() -> None:
    shape = CheckpointShape("bert", 1000, 64, 2, 50_000, 70_000, 64_000, 0, ((4, 64, 64), (1, 64, 256), (1, 256, 64)))
    origin = Origin("/somewhere", "hash", shape)
    branch = {"epochs": 1.0, "vary": ["seed"]}
    compact = {"from": "somewhere"}
    levels_ = [{"method": "merge", "members": 2, "branch": branch}, {"method": "stack", "copies": 2, "heal": {}}]
    graph = task_graph(CLASSES, origin, compact=compact, level=levels_)
    assert [node.method for node in graph] == ["base", "branch", "branch", "merge", "stack", "heal", "baseline"]
    assert graph["base"].source == "hash" and graph["baseline"].parents == ("base",)
    assert graph["baseline"].shape == shape and graph[graph.final].shape == shape.stacked(2)
    first = graph["level-1-branch-1"].train
    assert first and first.optimizer == "adamw" and first.lr == 1e-4 and first.order_seed != graph[graph.final].seed


def test_upcycling_encoders_is_refused() -> None:
    with pytest.raises(BadInput, match="upcycle makes experts of decoders"):
        task_graph(CLASSES, level=[{"method": "upcycle", "members": 2, "branch": {"epochs": 1.0}}])


def test_augmentation_is_part_of_what_names_a_node_only_where_it_is_used() -> None:
    data = {"data": {"task": "classification", "train": ["a.jsonl"]}}
    plain, changed = (
        build_graph(parse_plan({**BASE, **data, "train": train}), DataSize(10_000, labels=2))["leaf"].content()["train"]
        for train in ({}, {"token_splits": 0.2})
    )
    assert changed["token_splits"] == 0.2 and "token_splits" not in plain
    assert {key: value for key, value in changed.items() if key != "token_splits"} == plain


@pytest.mark.parametrize(("teacher", "leaves"), [("own", 6), ("shared", 3)])
def test_students_may_share_their_teacher(teacher: str, leaves: int) -> None:
    levels_ = [
        {"method": "ensemble", "members": 3},
        {"method": "distill", "teacher": teacher},
        {"method": "ensemble", "members": 2},
    ]
    graph = graph_of(level=levels_, budget={"flops": "1T"}, baseline={"enabled": False})
    students = [node for node in graph if node.method == "distill"]
    assert sum(node.method == "leaf" for node in graph) == leaves
    assert len({node.seed for node in students}) == 2
    assert len({node.teachers for node in students}) == (1 if teacher == "shared" else 2)
    spent = sum(graph.own_flops(node.name) for node in graph if node.method == "leaf")
    assert spent == pytest.approx(3 / 5 * 1e12, rel=0.03)  # the leaves' share, however many they are
    assert graph.total_flops(graph.final) == pytest.approx(1e12, rel=0.02)  # teachers' passes included


def test_what_a_teacher_says_on_a_small_text_costs_once() -> None:
    levels_ = [{"method": "ensemble", "members": 4}, {"method": "distill"}]
    budget: dict[str, Any] = {"budget": {"flops": "1T"}, "baseline": {"enabled": False}}
    small, large = (graph_of(tokens, level=levels_, **budget) for tokens in (20_000, 1_000_000))
    spec = small["level-2-distill"].train
    assert spec is not None and spec.teacher_tokens == 19_999 // 256 * 256
    taught = small["level-1-ensemble"].shape.forward_flops_per_token(spec.block_size)
    each = small["level-2-distill"].shape.train_flops_per_token(spec.block_size, spec.batch_tokens, spec.optimizer)
    assert small.own_flops("level-2-distill") == spec.tokens * each + spec.teacher_tokens * taught
    assert "teacher_tokens" in spec.content()
    read_once = large["level-2-distill"].train
    assert read_once is not None and read_once.teacher_tokens == 0 and "teacher_tokens" not in read_once.content()
    assert read_once.tokens < 0.7 * spec.tokens
    for graph in (small, large):
        assert graph.total_flops(graph.final) == pytest.approx(1e12, rel=0.02)


@pytest.mark.parametrize(("epochs", "kept"), [(0.4, False), (0.8, False), (3.0, True)])
def test_a_teacher_is_kept_only_where_a_text_is_read_again(epochs: float, kept: bool) -> None:
    levels_ = [{"method": "ensemble", "members": 2}, {"method": "distill", "student": {"epochs": epochs}}]
    spec = graph_of(20_000, level=levels_)["level-2-distill"].train
    assert spec is not None and spec.tokens == pytest.approx(epochs * 20_000, abs=2048)
    assert bool(spec.teacher_tokens) is kept


@pytest.mark.parametrize(
    ("changed", "kept"), [({}, True), ({"token_splits": 0.1}, False), ({"token_dropout": 0.1}, False)]
)
def test_a_teacher_of_texts_is_kept_unless_they_change(changed: dict[str, float], kept: bool) -> None:
    levels_ = [{"method": "ensemble", "members": 2}, {"method": "distill", "student": changed}]
    spec = task_graph(CLASSES, level=levels_)["level-2-distill"].train
    assert spec is not None and spec.teacher_tokens == (SIZE.tokens if kept else 0)


def test_what_a_teacher_says_is_not_kept_where_it_would_fill_the_memory() -> None:
    levels_ = [{"method": "ensemble", "members": 2}, {"method": "distill", "student": {"epochs": 2.0}}]
    spec = graph_of(600_000, level=levels_)["level-2-distill"].train  # 1.2 GB of probabilities
    assert spec is not None and spec.tokens > 1_000_000 and spec.teacher_tokens == 0


def test_a_teacher_is_trained_to_the_end_whatever_becomes_of_its_student() -> None:
    levels_ = [
        {"method": "ensemble", "members": 2},
        {"method": "distill"},
        {"method": "stack", "copies": 2, "heal": {}},
    ]
    graph = graph_of(level=levels_)
    decays = {node.name: node.train.decay for node in graph if node.train}
    assert decays["leaf-of-1"] > 0 and decays["level-2-distill"] == 0 and decays["level-3-heal"] > 0


def test_only_students_share_a_teacher() -> None:
    with pytest.raises(BadInput, match="teacher belongs to distill, not to ensemble"):
        graph_of(level=[{"method": "ensemble", "members": 2, "teacher": "shared"}])
