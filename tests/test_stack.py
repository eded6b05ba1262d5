"""Stacking: ranges, copies and sides, what the config says, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ract.aggregate import stack
from ract.aggregate.engine import execute as engine_execute
from ract.aggregate.recipe import Recipe
from ract.checkpoint.directory import open_model
from ract.errors import BadInput
from tests.pico import children, inputs, load, output, pico, save
from tests.reference import execute


def recipe(paths: list[Path], weights: Any = None, **options: Any) -> Recipe:
    opened = [open_model(path) for path in paths]
    return stack.recipe(opened, weights or [1 / len(paths)] * len(paths), **options)


def stacked(paths: list[Path], out: Path, weights: Any = None, **options: Any) -> Any:
    return load(execute(recipe(paths, weights, **options), [open_model(path) for path in paths], out))


def test_the_config_of_a_stacked_opt_says_its_new_depth(tmp_path: Path) -> None:
    """mergekit 0.1.5 writes four blocks under a config that says two."""
    paths = children(tmp_path, "OPT")
    stacked(paths, tmp_path / "parent")
    assert json.loads((tmp_path / "parent" / "config.json").read_text())["num_hidden_layers"] == 4
    names = load_file(tmp_path / "parent" / "model.safetensors").keys()
    assert {int(name.split("layers.")[1].split(".")[0]) for name in names if "layers." in name} == {0, 1, 2, 3}


def test_copies_repeat_all_blocks_in_order(tmp_path: Path) -> None:
    paths = children(tmp_path, "Llama")
    assert recipe(paths[:1], copies=3).notes["blocks"] == {"decoder": ["0:0", "0:1"] * 3}
    assert recipe(paths, copies=2).notes["blocks"] == {"decoder": ["0:0", "0:1", "1:0", "1:1"] * 2}


def test_ranges_as_text_and_as_a_list(tmp_path: Path) -> None:
    paths = children(tmp_path, "GPT-2", n_layer=3)
    text = recipe(paths, ranges="0:0-2, 1:1-3")
    assert text.notes["blocks"] == {"decoder": ["0:0", "0:1", "1:1", "1:2"]}
    assert text == recipe(paths, ranges=[(0, 0, 2), (1, 1, 3)])


def test_children_of_different_depth(tmp_path: Path) -> None:
    shallow = save(pico("Qwen3", 0), tmp_path / "a")
    deep = save(pico("Qwen3", 1, num_hidden_layers=3), tmp_path / "b")
    parent = stacked([shallow, deep], tmp_path / "parent")
    assert parent.config.num_hidden_layers == len(parent.config.layer_types) == 5


def test_layer_kinds_follow_their_blocks(tmp_path: Path) -> None:
    paths = children(tmp_path, "Gemma 3", layer_types=["full_attention", "sliding_attention"])
    parent = stacked(paths, tmp_path / "parent", ranges="0:1-2,1:0-2")
    assert parent.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]


def test_a_bound_on_layers_does_not_fall_below_the_depth(tmp_path: Path) -> None:
    paths = children(tmp_path, "Qwen2", max_window_layers=2)
    assert recipe(paths).config["max_window_layers"] == 4


def test_one_side_of_an_encoder_decoder(tmp_path: Path) -> None:
    paths = children(tmp_path, "T5")
    parent = stacked(paths, tmp_path / "parent", [0.25, 0.75], sides="encoder")
    assert (parent.config.num_layers, parent.config.num_decoder_layers) == (4, 2)
    name = "decoder.block.1.layer.0.SelfAttention.q.weight"
    a, b, mixed = (load_file(path / "model.safetensors")[name] for path in (*paths, tmp_path / "parent"))
    torch.testing.assert_close(mixed, 0.25 * a + 0.75 * b)


def test_ranges_by_side(tmp_path: Path) -> None:
    paths = children(tmp_path, "BART")
    chosen = recipe(paths, ranges={"encoder": "0:0-1,1:0-2", "decoder": "1:0-2"})
    assert (chosen.config["encoder_layers"], chosen.config["decoder_layers"]) == (3, 2)
    assert chosen.notes["blocks"] == {"encoder": ["0:0", "1:0", "1:1"], "decoder": ["1:0", "1:1"]}


def test_the_relative_attention_bias_is_blended_since_all_blocks_use_it(tmp_path: Path) -> None:
    paths = children(tmp_path, "T5")
    parent = stacked(paths, tmp_path / "parent", [0.25, 0.75], ranges={"encoder": "0:1-2,1:0-2", "decoder": "0:0-2"})
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    a, b = (load_file(path / "model.safetensors")[name] for path in paths)
    torch.testing.assert_close(parent.state_dict()[name], 0.25 * a + 0.75 * b)


def test_a_modernbert_block_without_a_norm_borrows_that_of_the_embeddings(tmp_path: Path) -> None:
    paths = children(tmp_path, "ModernBERT")
    made = recipe(paths)
    assert made.notes["borrowed"] == {"model.layers.2.attn_norm.weight": "model.embeddings.norm.weight"}
    parent = stacked(paths, tmp_path / "parent")
    theirs = load_file(paths[1] / "model.safetensors")["model.embeddings.norm.weight"]
    assert torch.equal(parent.state_dict()["model.layers.2.attn_norm.weight"], theirs)
    with pytest.raises(BadInput, match="block 1 of model 0 would compute differently as block 0"):
        recipe(paths, ranges="0:1-2,1:0-2")


def test_weights_by_group_apply_outside_the_blocks(tmp_path: Path) -> None:
    paths = children(tmp_path, "Llama")
    groups = {name: [0.5, 0.5] for name in ("decoder.0", "decoder.1")}
    parent = stacked(paths, tmp_path / "parent", {"embeddings": [1.0, 0.0], "head": [0.0, 1.0], **groups})
    a, b = (load_file(path / "model.safetensors") for path in paths)
    assert torch.equal(parent.model.embed_tokens.weight, a["model.embed_tokens.weight"])
    assert torch.equal(parent.lm_head.weight, b["lm_head.weight"])


def test_an_untied_head_beside_a_tied_config_is_kept(tmp_path: Path) -> None:
    """Flan-T5 stores a head of its own although its config ties it."""
    paths = children(tmp_path, "T5")
    weights = load_file(paths[0] / "model.safetensors")
    weights["lm_head.weight"] = torch.randn_like(weights["shared.weight"])
    save_file(weights, paths[0] / "model.safetensors", {"format": "pt"})
    made = execute(recipe(paths[:1], copies=2), [open_model(paths[0])], tmp_path / "parent")
    assert torch.equal(load_file(made / "model.safetensors")["lm_head.weight"], weights["lm_head.weight"])


def test_mixed_dtypes_lose_nothing(tmp_path: Path) -> None:
    paths = [save(pico("Llama", 0).bfloat16(), tmp_path / "a"), save(pico("Llama", 1), tmp_path / "b")]
    parent = stacked(paths, tmp_path / "parent")
    assert parent.dtype == torch.float32
    weights = load_file(paths[1] / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(parent.model.layers[3].mlp.up_proj.weight, weights)


def test_the_engine_writes_what_the_reference_writes(tmp_path: Path) -> None:
    paths = children(tmp_path, "T5, gated")
    opened = [open_model(path) for path in paths]
    (tmp_path / "engine").mkdir()
    engine_execute(recipe(paths, [0.25, 0.75]), opened, tmp_path / "engine")
    execute(recipe(paths, [0.25, 0.75]), opened, tmp_path / "reference")
    ours, theirs = load(tmp_path / "engine"), load(tmp_path / "reference")
    given = inputs(ours)
    assert torch.equal(output(ours, given), output(theirs, given))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ranges": "0:0-3"}, "range 0:0-3 is not within the 2 decoder blocks of model 0"),
        ({"ranges": "2:0-1"}, "names model 2"),
        ({"ranges": "0:1-1"}, "not within"),
        ({"ranges": "first two"}, "is no list of block ranges"),
        ({"ranges": {"encoder": "0:0-2"}}, 'has no stack "encoder"'),
        ({"sides": "encoder"}, 'has no side "encoder"'),
        ({"copies": 0}, "0 copies make no model"),
        ({"weights": [1.0]}, "1 weights were given for 2 models"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    paths = children(tmp_path, "Llama")
    with pytest.raises(BadInput, match=problem):
        recipe(paths, options.pop("weights", None), **options)


def test_children_that_compute_differently_are_refused(tmp_path: Path) -> None:
    paths = [save(pico("Llama", 0), tmp_path / "a"), save(pico("Llama", 1, rms_norm_eps=1e-3), tmp_path / "b")]
    with pytest.raises(BadInput, match="rms_norm_eps"):
        recipe(paths)
    with pytest.raises(BadInput, match=r"of class LlamaForCausalLM, .* of class MistralForCausalLM"):
        recipe([paths[0], save(pico("Mistral"), tmp_path / "c")])
    scaled = children(tmp_path / "scaled", "GPT-2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(BadInput, match="compute differently by depth"):
        recipe(scaled)


def test_a_config_that_contradicts_the_weights_is_refused(tmp_path: Path) -> None:
    path = save(pico("Llama"), tmp_path / "a")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(BadInput, match=r"model\.layers\.1\..* has no place"):
        recipe([path], copies=2)
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    with pytest.raises(BadInput, match="its config says"):
        recipe([path], copies=2)
