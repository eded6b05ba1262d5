"""Upcycling: experts, routers, and the architectures that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from ract.aggregate import upcycle
from ract.aggregate.engine import execute as engine_execute
from ract.aggregate.recipe import Recipe
from ract.checkpoint.directory import open_model
from ract.errors import BadInput
from tests.pico import ZOO, children, inputs, load, output, pico, save
from tests.reference import execute

FITS = ("Llama", "Mistral", "Qwen2", "Qwen3")


def recipe(paths: list[Path], weights: Any = None, **options: Any) -> Recipe:
    return upcycle.recipe([open_model(path) for path in paths], weights or [1 / len(paths)] * len(paths), **options)


def upcycled(paths: list[Path], out: Path, weights: Any = None, **options: Any) -> Any:
    return load(execute(recipe(paths, weights, **options), [open_model(path) for path in paths], out))


@pytest.mark.parametrize("name", FITS)
def test_expert_i_is_the_feed_forward_of_child_i_and_the_rest_is_blended(name: str, tmp_path: Path) -> None:
    paths = children(tmp_path, name)
    execute(recipe(paths, [0.25, 0.75]), [open_model(path) for path in paths], tmp_path / "parent")
    load(tmp_path / "parent")
    parent = load_file(tmp_path / "parent" / "model.safetensors")
    stored = [load_file(path / "model.safetensors") for path in paths]
    mixtral = name in ("Llama", "Mistral")
    names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"} if mixtral else dict.fromkeys(
        ("gate_proj", "up_proj", "down_proj")
    )  # fmt: skip
    where = "block_sparse_moe" if mixtral else "mlp"
    for block in (0, 1):
        for expert, own in enumerate(stored):
            for old, new in names.items():
                ours = parent[f"model.layers.{block}.{where}.experts.{expert}.{new or old}.weight"]
                assert torch.equal(ours, own[f"model.layers.{block}.mlp.{old}.weight"])
    key = "model.layers.1.self_attn.q_proj.weight"
    torch.testing.assert_close(parent[key], 0.25 * stored[0][key] + 0.75 * stored[1][key])


def test_experts_are_told_apart_by_the_function(tmp_path: Path) -> None:
    """With everything but the feed-forwards equal, choosing one expert alone gives the logits of its child."""
    base = pico("Llama", 0)
    paths = [save(base, tmp_path / "a")]
    other = pico("Llama", 1)
    state = {**base.state_dict(), **{k: v for k, v in other.state_dict().items() if ".mlp." in k}}
    other.load_state_dict(state)
    paths.append(save(other, tmp_path / "b"))
    parent = upcycled(paths, tmp_path / "parent", top_k=1)  # zeros: ties go to the first expert
    torch.testing.assert_close(output(parent), output(base), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(output(parent), output(other), atol=1e-3)


def test_copies_of_one_child(tmp_path: Path) -> None:
    made = recipe(children(tmp_path, "Llama", 1), copies=4, router="random")
    assert made.config["num_local_experts"] == 4
    assert made.config["num_experts_per_tok"] == 2


def test_the_random_router_follows_its_seed(tmp_path: Path) -> None:
    paths = children(tmp_path, "Qwen3")

    def gates(seed: int) -> list[torch.Tensor]:
        made = recipe(paths, router="random", seed=seed).tensors
        return [one.constant() for one in made if one.name.endswith("mlp.gate.weight") and one.constant is not None]

    first, again, other = gates(0), gates(0), gates(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])


def with_tokenizer(path: Path) -> Path:
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_the_hidden_router_sends_each_prompt_to_its_child(tmp_path: Path) -> None:
    paths = [with_tokenizer(path) for path in children(tmp_path, "Llama")]
    prompts = [["w3 w4 w5 w6"], ["w60 w61", "w62 w63"]]
    made = recipe(paths, router="hidden", prompts=prompts)
    gates = [one.constant() for one in made.tensors if one.constant is not None]
    assert [gate.shape for gate in gates] == [(2, 16), (2, 16)]
    for gate in gates:
        torch.testing.assert_close(gate.norm(dim=-1), torch.ones(2))
    for child, texts in enumerate(prompts):
        model = load(paths[child])
        seen: list[torch.Tensor] = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0]))
        for text in texts:
            output(model, {"input_ids": torch.tensor([[int(word[1:]) for word in text.split()]])})
        mean = torch.cat(seen).mean(0)
        torch.testing.assert_close(gates[0][child], mean / mean.norm())


def test_the_engine_writes_what_the_reference_writes(tmp_path: Path) -> None:
    paths = children(tmp_path, "Qwen2")
    opened = [open_model(path) for path in paths]
    made = recipe(paths, [0.25, 0.75], router="random")
    (tmp_path / "engine").mkdir()
    engine_execute(made, opened, tmp_path / "engine")
    execute(made, opened, tmp_path / "reference")
    ours, theirs = load(tmp_path / "engine"), load(tmp_path / "reference")
    given = inputs(ours)
    assert torch.equal(output(ours, given), output(theirs, given))


REASONS = {"Mixtral": "a mixture of experts already", "Phi-3": "norms and attention of phi3"}
REASONS |= dict.fromkeys(("Gemma", "Gemma 2", "Gemma 3"), "norms and attention of gemma")
REASONS |= dict.fromkeys(("GPT-2", "GPT-NeoX", "OPT", "Phi"), "its feed-forward has no gate")


@pytest.mark.parametrize("name", [name for name in ZOO if name not in FITS])
def test_architectures_without_an_exact_mixture_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=REASONS.get(name, "are causal language models, and it is none")):
        recipe(children(tmp_path, name, 1))


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("Llama", {"attention_bias": True}, "has no counterpart in MixtralForCausalLM"),
        ("Llama", {"mlp_bias": True}, "no gated feed-forward without biases"),
        ("Qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "has one kind of attention"),
    ],
)
def test_variants_without_an_exact_mixture_are_refused(
    name: str, changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=problem):
        recipe(children(tmp_path, name, **changes))


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
@pytest.mark.parametrize("name", ["Qwen2", "Qwen3"])
def test_sliding_windows_survive(name: str, kind: str, tmp_path: Path) -> None:
    changes = {"layer_types": [kind] * 2, "use_sliding_window": kind == "sliding_attention", "sliding_window": 3}
    child = pico(name, **changes)
    path = save(child, tmp_path / "child")
    parent = upcycled([path, path], tmp_path / "parent")
    torch.testing.assert_close(output(parent), output(child), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"router": "clever"}, "is no router"),
        ({"top_k": 3}, "3 of 2 experts"),
        ({"top_k": -1}, "-1 of 2 experts"),
        ({"copies": 0}, "of 0 experts"),
        ({"router": "hidden"}, "needs prompts"),
        ({"router": "hidden", "prompts": [["a"]]}, "needs prompts"),
        ({"router": "hidden", "prompts": [["a"], ["b"]]}, "has no tokenizer"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=problem):
        recipe(children(tmp_path, "Llama"), **options)
