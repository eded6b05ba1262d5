"""Pruning: what adds nothing goes without a trace, what is chosen is the best choice, and what cannot be is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ract.aggregate.loaded import mean_loss
from ract.aggregate.recipe import TensorRecipe
from ract.aggregate.run import aggregate
from ract.checkpoint.directory import open_model
from ract.compress.prune import Cut, expected_parameters, prune
from ract.compress.silence import second_moments
from ract.errors import BadInput
from tests.pico import children, inputs, load, output, pico, save

Batch = dict[str, torch.Tensor]
WIDE = {"intermediate_size": 48}
FEED_FORWARDS: dict[str, dict[str, Any]] = {
    "Llama": WIDE,
    "Qwen3": WIDE,
    "GPT-2": {},
    "BERT, classification": WIDE,
    "ModernBERT": WIDE,
    "Marian": {"encoder_ffn_dim": 48, "decoder_ffn_dim": 64},
}


def batch_for(model: PreTrainedModel) -> Batch:
    given = inputs(model)
    if "Classification" in type(model).__name__:
        return {**given, "labels": torch.tensor([0, 2])}
    if model.config.is_encoder_decoder:
        labels = given.pop("decoder_input_ids").clone()
        labels[0, -2:] = -100
        return {**given, "labels": labels}
    return {**given, "labels": given["input_ids"].clone()}


def pruned(model: PreTrainedModel, cut: Cut, folder: Path) -> tuple[PreTrainedModel, Any]:
    """*model* after *cut*, opened again with not one tensor missing or left over, and what was noted."""
    path, notes = prune(save(model, folder / "model"), cut, [batch_for(model)], folder / "work")
    return load(path), notes


def silence_feed_forwards(model: PreTrainedModel) -> None:
    """All but every third neuron adds nothing: its column of the output projection is zero."""
    for name, parameter in model.named_parameters():
        if name.endswith(("down_proj.weight", "mlp.c_proj.weight", "mlp.Wo.weight", "fc2.weight")) or (
            name.endswith("output.dense.weight") and "attention" not in name
        ):
            columns = parameter.data.T if "c_proj" not in name else parameter.data
            columns[torch.arange(len(columns)) % 3 > 0] = 0.0


@pytest.mark.parametrize("name", FEED_FORWARDS)
def test_neurons_that_add_nothing_go_without_a_trace(name: str, tmp_path: Path) -> None:
    model = pico(name, **FEED_FORWARDS[name])
    silence_feed_forwards(model)
    smaller, notes = pruned(model, Cut(neurons=0.5), tmp_path)
    torch.testing.assert_close(output(smaller, inputs(model)), output(model), atol=2e-6, rtol=0)
    assert smaller.num_parameters() < model.num_parameters() and set(notes["neurons"].values()) == {32}


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Phi-3"])
def test_heads_that_add_nothing_go_without_a_trace(name: str, tmp_path: Path) -> None:
    model = pico(name)
    for layer in model.model.layers:
        out = layer.self_attn.o_proj.weight.data
        out[:, : out.shape[1] // 2] = 0.0  # the first key-value group of two
    smaller, notes = pruned(model, Cut(heads=0.5), tmp_path)
    torch.testing.assert_close(output(smaller), output(model), atol=2e-6, rtol=0)
    config = smaller.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (2, 1)
    assert config.head_dim == notes["heads"]["head_dim"] == model.model.layers[0].self_attn.head_dim


def test_a_block_that_is_the_identity_goes_without_a_trace(tmp_path: Path) -> None:
    model = pico("Qwen3", num_hidden_layers=4)
    model.model.layers[2].self_attn.o_proj.weight.data.zero_()
    model.model.layers[2].mlp.down_proj.weight.data.zero_()
    model.lm_head.weight.data *= 20  # sure of what it says
    batch = batch_for(model)
    batch["labels"][:, 1:] = output(model).argmax(-1)[:, :-1]
    path, notes = prune(save(model, tmp_path / "model"), Cut(blocks=1), [batch], tmp_path / "work")
    smaller = load(path)
    assert notes == {"blocks": ["decoder.2"]} and smaller.config.num_hidden_layers == 3
    assert len(smaller.config.layer_types) == 3
    assert torch.equal(output(smaller), output(model))


@pytest.mark.parametrize("name", ["Llama", "BERT, classification", "Marian"])
def test_the_block_that_goes_is_the_one_with_the_least_loss(name: str, tmp_path: Path) -> None:
    depth = {"encoder_layers": 3, "decoder_layers": 2} if name == "Marian" else {"num_hidden_layers": 3}
    model = pico(name, **depth)
    batch = batch_for(model)
    path = save(model, tmp_path / "model")
    _, notes = prune(path, Cut(blocks=1), [batch], tmp_path / "work")
    losses = {}
    for stack, number in _every_block(model):
        kept = [i for i in range(_depth(model, stack)) if i != number]
        losses[f"{stack}.{number}"] = mean_loss(_without(model, stack, kept), [batch])
    assert notes["blocks"] == [min(losses, key=losses.__getitem__)]


def _every_block(model: PreTrainedModel) -> list[tuple[str, int]]:
    if model.config.is_encoder_decoder:
        return [(s, i) for s in ("encoder", "decoder") for i in range(_depth(model, s))]
    side = "encoder" if "Bert" in type(model).__name__ else "decoder"
    return [(side, i) for i in range(_depth(model, side))]


def _depth(model: PreTrainedModel, stack: str) -> int:
    config = model.config
    return getattr(config, f"{stack}_layers") if config.is_encoder_decoder else config.num_hidden_layers


def _without(model: PreTrainedModel, stack: str, kept: list[int]) -> PreTrainedModel:
    """Built by hand: the config says fewer blocks, the state is renamed."""
    config = type(model.config).from_dict(model.config.to_dict())
    if model.config.is_encoder_decoder:
        setattr(config, f"{stack}_layers", len(kept))
    else:
        config.num_hidden_layers = len(kept)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: len(kept)]
    smaller = type(model)(config).eval()
    wanted = smaller.state_dict()
    state = {}
    for name in wanted:
        pieces = name.split(".")
        inside = f".{stack}." in f".{name}" or not model.config.is_encoder_decoder
        for place in range(1, len(pieces)):
            if inside and pieces[place - 1] in ("layers", "layer") and pieces[place].isdecimal():
                pieces[place] = str(kept[int(pieces[place])])
                break
        state[name] = model.state_dict()[".".join(pieces)]
    smaller.load_state_dict(state)
    return smaller


def test_every_stack_keeps_a_block(tmp_path: Path) -> None:
    model = pico("Marian")
    smaller, _ = pruned(model, Cut(blocks=2), tmp_path)
    assert (smaller.config.encoder_layers, smaller.config.decoder_layers) == (1, 1)
    with pytest.raises(BadInput, match=r"of the 4 blocks of .*, 3 cannot be left out"):
        pruned(model, Cut(blocks=3), tmp_path / "again")


def test_a_modernbert_keeps_its_first_block_which_has_no_norm(tmp_path: Path) -> None:
    model = pico("ModernBERT", num_hidden_layers=3, global_attn_every_n_layers=1)
    for part in (model.model.layers[0].attn.Wo, model.model.layers[0].mlp.Wo):
        part.weight.data.zero_()  # it would be the best one to leave out
    _, notes = pruned(model, Cut(blocks=1), tmp_path)
    assert notes["blocks"] != ["encoder.0"]


def test_all_three_at_once_in_bfloat16(tmp_path: Path) -> None:
    model = pico("Qwen3", num_hidden_layers=3, **WIDE).bfloat16()
    smaller, notes = pruned(model, Cut(blocks=1, neurons=0.3, heads=0.5), tmp_path)
    assert list(notes) == ["blocks", "heads", "neurons"]
    assert smaller.dtype == torch.bfloat16 and smaller.config.intermediate_size == 32
    assert smaller.num_parameters() == expected_parameters(tmp_path / "model", Cut(1, 0.3, 0.5))


def test_the_score_of_a_neuron_is_its_activation_times_its_column(tmp_path: Path) -> None:
    model = pico("Llama", num_hidden_layers=1, **WIDE)
    batch = batch_for(model)
    down = model.model.layers[0].mlp.down_proj
    seen = []
    handle = down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(**batch)
    handle.remove()
    score = seen[0].flatten(0, 1).pow(2).mean(0).sqrt() * down.weight.norm(dim=0)
    best = score.topk(32).indices.sort().values
    smaller, _ = pruned(model, Cut(neurons=0.4), tmp_path)
    assert torch.equal(smaller.model.layers[0].mlp.down_proj.weight, down.weight[:, best])
    assert torch.equal(smaller.model.layers[0].mlp.gate_proj.weight, model.model.layers[0].mlp.gate_proj.weight[best])


def test_padding_does_not_count() -> None:
    model = pico("BERT, classification")
    down = model.bert.encoder.layer[0].output.dense
    ids = torch.randint(3, 90, (1, 5), generator=torch.Generator().manual_seed(0))
    plain = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    padded = {key: torch.nn.functional.pad(value, (0, 4)) for key, value in plain.items()}
    found = [second_moments(model, {down: (1, False)}, [batch])[down] for batch in (plain, padded)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("name", "cut", "problem"),
    [
        ("BERT, classification", Cut(heads=0.5), "cannot say fewer heads of the same width"),
        ("GPT-2", Cut(heads=0.5), "cannot say fewer heads of the same width"),
        ("T5", Cut(heads=0.5), "cannot say fewer heads of the same width"),
        ("GPT-NeoX", Cut(heads=0.5), "stores queries, keys and values interleaved"),
        ("Mixtral", Cut(neurons=0.5), "not one dense layer"),
        ("Llama", Cut(neurons=0.5), "would still have 16"),
        ("Llama", Cut(heads=0.1), "a block has 2 key-value groups: 10% of that is none"),
        ("ALBERT", Cut(blocks=1), "of the 1 blocks of .* 1 cannot be left out"),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_the_reason(name: str, cut: Cut, problem: str, tmp_path: Path) -> None:
    model = pico(name, **({"intermediate_size": 16} if problem == "would still have 16" else {}))
    with pytest.raises(BadInput, match=problem):
        pruned(model, cut, tmp_path)


def test_an_ensemble_is_many_models(tmp_path: Path) -> None:
    aggregate(children(tmp_path, "Llama"), tmp_path / "both", method="ensemble")
    with pytest.raises(BadInput, match="is an ensemble, and one model is pruned"):
        prune(tmp_path / "both", Cut(blocks=1), [], tmp_path / "work")
    one = pico("Llama").num_parameters()
    assert expected_parameters(tmp_path / "both", Cut()) == 2 * one


def _doubled(tensor: TensorRecipe) -> TensorRecipe:
    select = tensor.function
    assert select is not None
    return replace(tensor, function=lambda given: 2 * select(given))


def test_heads_that_depend_on_their_number_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does not compute what the original does without the part is never handed on."""
    from ract.compress import prune as module

    right: Callable[..., Any] = module.units.cut

    def wrong(*arguments: Any) -> Any:
        found = right(*arguments)
        return replace(found, tensors=tuple(_doubled(t) if "q_proj" in t.name else t for t in found.tensors))

    monkeypatch.setattr(module.units, "cut", wrong)
    with pytest.raises(BadInput, match="computes otherwise with fewer parts"):
        pruned(pico("Llama"), Cut(heads=0.5), tmp_path)


def test_tokenizer_and_generation_config_travel_along(tmp_path: Path) -> None:
    from tests.text_models import byte_level_model

    path = byte_level_model(tmp_path / "model")
    model = load(path)
    out, _ = prune(path, Cut(blocks=1), [batch_for(model)], tmp_path / "work")
    assert {"tokenizer.json", "generation_config.json"} <= {file.name for file in out.iterdir()}
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 1
    assert open_model(out).has_tokenizer
