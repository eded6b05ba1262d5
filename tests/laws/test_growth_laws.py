"""The exact laws of growth (the table of the design), for every architecture that a method takes.

| stack | block *k* of the parent is the child's block: its weights bit for bit, and what it computes |
| upcycle | equal children and a uniform router give the child's logits |
| ensemble | logits = Σ αᵢ logitsᵢ, and a nested ensemble is a flat one with multiplied α |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedModel

from ract.aggregate import ensemble, stack, upcycle
from ract.aggregate.recipe import Recipe
from ract.checkpoint.directory import ModelDirectory, open_model
from ract.model.anatomy import anatomy
from tests.pico import ZOO, children, inputs, load, output, pico, save
from tests.reference import execute

QUICK = ("GPT-2", "GPT-NeoX", "Gemma 2", "Mixtral", "ModernBERT", "T5, gated", "BERT, masked LM")
few = settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
simplex = st.lists(st.integers(1, 9), min_size=3, max_size=3).map(lambda parts: [part / sum(parts) for part in parts])


def architectures(*but: str) -> list[Any]:
    """The zoo, one of each kind in the fast suite and all of it in the slow one."""
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in ZOO if name not in but]


def grow(
    paths: Sequence[Path], out: Path, method: Callable[..., Recipe], *args: Any, **options: Any
) -> PreTrainedModel:
    opened: list[ModelDirectory] = [open_model(path) for path in paths]
    return load(execute(method(opened, *args, **options), opened, out))


def block_calls(
    model: PreTrainedModel, prefix: str
) -> tuple[list[tuple[Any, dict[str, Any], torch.Tensor]], nn.Module]:
    """What goes into each block of a stack and what comes out, for one forward pass."""
    calls: list[tuple[Any, dict[str, Any], torch.Tensor]] = []
    blocks = model.get_submodule(prefix)
    for block in blocks.children():
        block.register_forward_hook(
            lambda _, args, kwargs, out: calls.append((args, kwargs, hidden(out))), with_kwargs=True
        )
    for module in model.modules():
        if isinstance(module, PreTrainedModel):  # T5's decoder has a config of its own
            module.config.use_cache = False
    output(model)
    return calls, blocks


def hidden(out: Any) -> torch.Tensor:
    return out if isinstance(out, torch.Tensor) else out[0]


@pytest.mark.parametrize("name", architectures("ALBERT"))
def test_block_k_of_a_stack_is_the_childs_block(name: str, tmp_path: Path) -> None:
    paths = children(tmp_path, name)
    parent = grow(paths, tmp_path / "parent", stack.recipe, [0.25, 0.75])
    for one in anatomy(tmp_path / "parent").stacks:
        calls, blocks = block_calls(parent, one.prefix)
        assert len(calls) == len(list(blocks.children())) == 4
        for place, (child, index) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            theirs = load(paths[child]).get_submodule(f"{one.prefix}.{index}")
            ours = blocks.get_submodule(str(place)).state_dict()
            table = {key for key in theirs.state_dict() if "relative_attention_bias" in key}  # the stack's, not its own
            assert all(torch.equal(ours[key], value) for key, value in theirs.state_dict().items() if key not in table)
            args, kwargs, expected = calls[place]
            extra = ours.keys() - theirs.state_dict().keys()
            assert extra == ({"attn_norm.weight"} if name == "ModernBERT" and place == 2 else set())
            if not extra and (not table or place > 0):
                with torch.no_grad():
                    assert torch.equal(hidden(theirs(*args, **kwargs)), expected)


def test_shared_blocks_are_stacked_as_groups(tmp_path: Path) -> None:
    paths = children(tmp_path, "ALBERT")
    parent = grow(paths, tmp_path / "parent", stack.recipe, [0.5, 0.5])
    prefix = "albert.encoder.albert_layer_groups"
    for index, path in enumerate(paths):
        theirs = load(path).get_submodule(f"{prefix}.0").state_dict()
        ours = parent.get_submodule(f"{prefix}.{index}").state_dict()
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    runs: list[int] = []
    for index, group in enumerate(parent.get_submodule(prefix).children()):
        group.register_forward_hook(lambda *_, index=index: runs.append(index))
    output(parent)
    assert runs == [0, 0, 1, 1]


@few
@given(picks=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=6))
def test_any_choice_of_blocks(picks: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("stack")
    paths = children(folder, "Gemma 2", num_hidden_layers=3)
    ranges = [(child, block, block + 1) for child, block in picks]
    parent = grow(paths, folder / "parent", stack.recipe, [0.5, 0.5], ranges=ranges)
    assert parent.config.num_hidden_layers == len(picks)
    kinds = load(paths[0]).config.layer_types
    assert parent.config.layer_types == [kinds[block] for _, block in picks]
    for place, (child, block) in enumerate(picks):
        theirs = load(paths[child]).model.layers[block].state_dict()
        ours = parent.model.layers[place].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize(("count", "top_k"), [(2, None), (3, 1), (4, 2)])
def test_equal_children_and_a_uniform_router_give_the_childs_logits(
    name: str, count: int, top_k: int | None, tmp_path: Path
) -> None:
    child = pico(name)
    path = save(child, tmp_path / "child")
    parent = grow([path] * count, tmp_path / "parent", upcycle.recipe, [1 / count] * count, top_k=top_k)
    assert type(parent).__name__ in ("MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
    torch.testing.assert_close(
        output(parent), output(child), rtol=1e-6, atol=1e-6
    )  # fp32: only the order of sums differs


@pytest.mark.parametrize("name", architectures("BERT"))
def test_an_ensembles_logits_are_the_weighted_sum(name: str, tmp_path: Path) -> None:
    paths = children(tmp_path, name)
    parent = grow(paths, tmp_path / "parent", ensemble.recipe, [0.25, 0.75])
    a, b = (output(load(path), inputs(parent)) for path in paths)
    assert torch.equal(output(parent), 0.25 * a + 0.75 * b)


@few
@given(outer=simplex, inner=simplex, mode=st.sampled_from(["logits", "probabilities"]))
def test_a_nested_ensemble_is_a_flat_one(
    outer: list[float], inner: list[float], mode: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ensemble")
    paths = children(folder, "BERT, classification", 3, num_hidden_layers=1)
    nested = grow(paths, folder / "inner", ensemble.recipe, inner, mode=mode)
    parent = grow([folder / "inner", *paths[:2]], folder / "outer", ensemble.recipe, outer, mode=mode)
    assert len(parent.members) == 5
    expected = [outer[0] * alpha for alpha in inner] + outer[1:]
    assert parent.config.weights == expected
    given_ = inputs(parent)
    parts = [output(one, given_) for one in (nested, *(load(path) for path in paths[:2]))]
    if mode == "probabilities":
        mixed = sum(alpha * part.softmax(-1) for alpha, part in zip(outer, parts, strict=True))
        torch.testing.assert_close(output(parent, given_).exp(), mixed)
    else:
        torch.testing.assert_close(output(parent, given_), sum(a * p for a, p in zip(outer, parts, strict=True)))
