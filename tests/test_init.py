"""What ``ract init`` chooses: the size by the budget, the recipe by what is scarce; and that its plans are plans."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ract.errors import BadInput
from ract.plan.derive import build_graph
from ract.plan.schema import parse_plan
from ract.tree.init import init
from ract.tree.init_language import RECIPES, choose, filled

TEXT = 50_000_000


@pytest.mark.parametrize("flops", [1e11, 1e13, 1e15])
@pytest.mark.parametrize("text_bytes", [20_000, 1_000_000, None])
@pytest.mark.parametrize("recipe", [*RECIPES, None])
def test_every_choice_is_a_plan_that_keeps_its_size_and_its_budget(
    flops: float, text_bytes: int | None, recipe: str | None
) -> None:
    choice = choose(4_000_000, "fp32", text_bytes, flops, recipe)
    text = filled(choice, 3, Path("plan.toml"), "mine", '["a.txt"]', 5.0)
    graph = build_graph(parse_plan(tomllib.loads(text)), 100_000)
    assert graph[graph.final].shape == choice.final
    assert choice.final.size_bytes("fp32") <= 4_000_000
    assert graph.total_flops(graph.final) <= 1.03 * choice.flops or flops == 1e11  # one step of each stage at least
    assert choice.flops == (2 if choice.recipe == "single" else 1) * flops  # it has no baseline beside it
    assert (graph.baseline is None) == (choice.recipe == "single")
    assert ("distill" in {node.method for node in graph}) == (choice.recipe == "distil")
    assert all(node.train.dropout == (0.1 if choice.regular else 0) for node in graph if node.train)


def test_the_recipe_follows_what_is_scarce() -> None:
    assert choose(20_000_000, "fp32", TEXT, 1e13).recipe == "grow"
    assert choose(20_000_000, "fp32", TEXT // 1000, 1e13).recipe == "distil"
    assert choose(20_000_000, "fp32", None, 1e13).recipe == "grow"
    assert choose(20_000_000, "fp32", TEXT, 1e13, "distil").recipe == "distil"


@pytest.mark.parametrize(
    ("flops", "recipe", "regular"),
    [(1e11, "grow", False), (3e11, "grow", True), (1e12, "single", True), (2e13, "distil", True)],
)
def test_the_more_often_a_text_is_read_the_more_a_model_is_kept_from_learning_it_by_heart(
    flops: float, recipe: str, regular: bool
) -> None:
    choice = choose(400_000, "fp32", 100_000, flops)
    assert (choice.recipe, choice.regular) == (recipe, regular)
    forced = choose(400_000, "fp32", 100_000, flops, "grow")
    assert forced.regular == regular  # what is grown at the user's wish is kept from it too


def test_a_small_budget_makes_a_smaller_model_and_says_so() -> None:
    little, much = (choose(20_000_000, "fp32", TEXT, flops) for flops in (1e12, 1e16))
    assert little.limited and not much.limited
    assert little.final.parameters < much.final.parameters <= 5_000_000
    texts = [filled(c, 4, Path("p"), "n", "[]", 5.0) for c in (little, much)]
    assert "it would learn less" in texts[0] and "it would learn less" not in texts[1]


def test_a_recipe_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match='no recipe "grwo"') as caught:
        init(tmp_path, recipe="grwo")
    assert "grow" in caught.value.remedy
    with pytest.raises(BadInput, match="for classification"):
        init(tmp_path, task="classification", data=["a.jsonl"], recipe="grow")
