"""The anatomy of every architecture, held against what transformers writes and computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ract.errors import BadInput
from ract.model.anatomy import Anatomy, anatomy
from ract.model.projections import Attention, FeedForward, Projection
from tests.pico import ZOO, inputs, output, pico, save

DEPTH_FIELDS = {
    "GPT-2": {"decoder": ("n_layer",)},
    "DistilBERT": {"encoder": ("n_layers",)},
    "ALBERT": {"encoder": ("num_hidden_groups",)},
    "T5": {"encoder": ("num_layers",), "decoder": ("num_decoder_layers",)},
    "T5, gated": {"encoder": ("num_layers",), "decoder": ("num_decoder_layers",)},
    "BART": {"encoder": ("encoder_layers",), "decoder": ("decoder_layers",)},
    "Marian": {"encoder": ("encoder_layers",), "decoder": ("decoder_layers",)},
}
ENCODERS = ("BERT", "RoBERTa", "DistilBERT", "ModernBERT", "ALBERT")


def on_disk(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}


def known(name: str, **changes: object) -> Anatomy:
    model = pico(name, **changes)
    return anatomy({**model.config.to_dict(), "architectures": [type(model).__name__]})


@pytest.mark.parametrize("name", ZOO)
def test_parts_are_what_save_pretrained_writes(name: str, tmp_path: Path) -> None:
    stored = on_disk(save(pico(name), tmp_path / "model"))
    found = anatomy(tmp_path / "model")
    assert {part: info.shape for part, info in found.parts.items()} == stored
    assert found.locate(stored) == {part: part for part in stored}
    assert {found.group(part) for part in stored} <= set(found.groups)


@pytest.mark.parametrize("name", ZOO)
def test_stacks_and_the_fields_that_count_them(name: str) -> None:
    found = known(name)
    side = "encoder" if name.startswith(ENCODERS) else "decoder"
    expected = DEPTH_FIELDS.get(name, {side: ("num_hidden_layers",)})
    assert {stack.name: stack.depth_fields for stack in found.stacks} == expected
    for stack in found.stacks:
        assert stack.depth == (1 if name == "ALBERT" else 2)
        assert stack.run_fields == (("num_hidden_layers",) if name == "ALBERT" else ())
        layered = "layer_types" in found.config and name != "Mixtral"
        assert stack.layer_fields == (("layer_types",) if layered else ())
        blocks = {part.block for part in found.parts.values() if part.stack == stack.name} - {None}
        assert blocks == set(range(stack.depth))
        roles = {part.role for part in found.parts.values() if part.block == 0 and part.stack == stack.name}
        assert roles == {"attention", "feed_forward", "norm"}


@pytest.mark.parametrize("name", [name for name in ZOO if name != "Mixtral"])
def test_every_projection_is_found(name: str) -> None:
    found = known(name)
    for stack in found.stacks:
        for block in stack.blocks:
            crossed = [attention.cross for attention in block.attentions]
            assert crossed == ([False, True] if stack.name == "decoder" and len(found.stacks) == 2 else [False])
            assert block.feed_forward is not None
            grouped = found.config.get("num_key_value_heads") == 2
            assert {(a.heads, a.kv_heads) for a in block.attentions} == {(4, 2 if grouped else 4)}


def test_fused_layouts_and_gates() -> None:
    def first(name: str) -> tuple[Attention, FeedForward]:
        block = known(name).stacks[-1].blocks[0]
        assert block.feed_forward is not None
        return block.attentions[0], block.feed_forward

    assert [first(name)[0].layout for name in ("GPT-2", "Phi-3", "ModernBERT")] == ["concatenated"] * 3
    assert first("GPT-NeoX")[0].layout == "interleaved"
    assert first("Phi")[0].layout == "separate"
    assert [first(name)[1].fused for name in ("Phi-3", "ModernBERT", "Llama")] == [True, True, False]
    gate = first("T5, gated")[1].gate
    assert gate is not None and gate.weight.endswith("wi_0.weight")
    assert first("T5")[1].gate is None
    assert first("GPT-2")[1].up.transposed


def test_mixture_of_experts_has_no_dense_feed_forward() -> None:
    assert all(block.feed_forward is None for block in known("Mixtral").stacks[0].blocks)


def test_ties_are_found() -> None:
    bert = known("BERT, masked LM")
    assert ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight") in bert.tied
    assert known("Llama").tied == ()
    assert known("Llama", tie_word_embeddings=True).aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert set(known("T5").tied[0]) == {
        "shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight",
    }  # fmt: skip


@pytest.mark.parametrize("layers", [1, 2])
def test_a_table_held_by_the_first_block_belongs_to_the_whole_stack(layers: int) -> None:
    found = known("T5", num_layers=layers)
    part = found.parts["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    assert (part.role, part.stack, part.block) == ("position", "encoder", None)


def test_groups_outside_the_blocks() -> None:
    opt, bart, albert = known("OPT"), known("BART"), known("ALBERT")
    assert opt.group("model.decoder.final_layer_norm.weight") == "head"
    assert opt.group("model.decoder.embed_positions.weight") == "embeddings"
    assert bart.group("model.encoder.layernorm_embedding.weight") == "embeddings"
    assert albert.group("albert.encoder.embedding_hidden_mapping_in.weight") == "embeddings"
    assert known("GPT-NeoX").group("embed_out.weight") == "head"
    assert known("BERT, classification").group("bert.pooler.dense.weight") == "head"


def test_names_of_other_versions_are_located() -> None:
    gpt2 = known("GPT-2")
    bare = {name.removeprefix("transformer."): name for name in gpt2.parts}
    located = gpt2.locate([*bare, "h.0.attn.bias", "lm_head.weight"])
    assert located == {name: old for old, name in bare.items()} | {"lm_head.weight": "lm_head.weight"}
    bert = known("BERT, masked LM")
    old = [name.replace("LayerNorm.weight", "LayerNorm.gamma") for name in bert.parts]
    located = bert.locate([*old, "cls.seq_relationship.weight", "bert.pooler.dense.weight"])
    assert set(located) == set(bert.parts)
    assert located["bert.embeddings.LayerNorm.weight"] == "bert.embeddings.LayerNorm.gamma"


def test_a_tied_tensor_under_its_other_name_only_is_located() -> None:
    gpt2 = known("GPT-2")
    names = [name for name in gpt2.parts if name != "transformer.wte.weight"] + ["lm_head.weight"]
    assert gpt2.locate(names)["transformer.wte.weight"] == "lm_head.weight"


def test_weights_that_contradict_the_config_are_refused() -> None:
    llama = known("Llama")
    with pytest.raises(BadInput, match=r"model\.layers\.2\.self_attn\.q_proj\.weight has no place"):
        llama.locate([*llama.parts, "model.layers.2.self_attn.q_proj.weight"])
    with pytest.raises(BadInput, match=r"model\.norm\.weight .* is missing"):
        llama.locate(set(llama.parts) - {"model.norm.weight"})


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"model_type": "lama"}, 'knows no model_type "lama".*llama'),
        ({"architectures": ["X"]}, "knows no model_type"),
        ({"model_type": "odd", "auto_map": {"AutoModel": "x.Y"}}, "never run"),
        ({"model_type": "llama", "architectures": ["NoSuchModel"]}, 'no model class "NoSuchModel"'),
        ({"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 17}, "makes no BertModel"),
        ({"model_type": "llama", "hidden_size": "wide"}, "refused by transformers"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(config: dict[str, object], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        anatomy(config)


def test_an_unreadable_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(BadInput, match="holds no JSON object"):
        anatomy(tmp_path)
    with pytest.raises(BadInput, match="cannot be read"):
        anatomy(tmp_path / "absent")


def reordered(weights: dict[str, torch.Tensor], projection: Projection, order: torch.Tensor, side: str) -> None:
    """Permute the outputs or the inputs of *projection* in place."""
    rows = (side == "out") != projection.transposed
    weights[projection.weight] = weights[projection.weight].index_select(0 if rows else 1, order)
    if side == "out" and projection.bias is not None:
        weights[projection.bias] = weights[projection.bias][order]


def permuted_neurons(weights: dict[str, torch.Tensor], forward: FeedForward) -> None:
    order = torch.arange(forward.width).flip(0)
    both = torch.cat([order, order + forward.width]) if forward.fused else order
    for projection in filter(None, (forward.up, forward.gate)):
        reordered(weights, projection, both, "out")
    reordered(weights, forward.down, order, "in")


def permuted_heads(weights: dict[str, torch.Tensor], attention: Attention) -> None:
    """Reverse the order of the key-value heads, each with the query heads that read it."""
    size, group = attention.head_dim, attention.heads // attention.kv_heads
    kv = torch.arange(attention.kv_heads * size).view(attention.kv_heads, size).flip(0).flatten()
    q = torch.arange(attention.heads * size).view(attention.kv_heads, group * size).flip(0).flatten()
    if attention.layout == "separate":
        assert attention.q and attention.k and attention.v
        for projection, order in ((attention.q, q), (attention.k, kv), (attention.v, kv)):
            reordered(weights, projection, order, "out")
    else:
        assert attention.qkv
        order = torch.cat([q, kv + len(q), kv + len(q) + len(kv)])
        if attention.layout == "interleaved":
            order = torch.arange(3 * len(q)).view(attention.heads, 3 * size).flip(0).flatten()
        reordered(weights, attention.qkv, order, "out")
    reordered(weights, attention.o, q, "in")


@pytest.mark.parametrize("name", [name for name in ZOO if name != "Mixtral"])
def test_projections_mean_what_they_say(name: str, tmp_path: Path) -> None:
    """Neurons and heads reordered by the description leave the function as it was; any misread layout would not."""
    from safetensors.torch import load_file, save_file

    from tests.pico import load

    model = pico(name)
    path = save(model, tmp_path / "model")
    weights = load_file(path / "model.safetensors")
    before = {key: value.clone() for key, value in weights.items()}
    for block in (block for stack in anatomy(path).stacks for block in stack.blocks):
        assert block.feed_forward is not None
        permuted_neurons(weights, block.feed_forward)
        for attention in block.attentions:
            if attention.cross or not name.startswith("T5"):  # T5's bias table has a column per head of all blocks
                permuted_heads(weights, attention)
    assert any(not torch.equal(weights[key], before[key]) for key in weights)
    save_file({key: value.contiguous() for key, value in weights.items()}, path / "model.safetensors", {"format": "pt"})
    given = inputs(model)
    torch.testing.assert_close(output(load(path), given), output(model, given), rtol=1e-5, atol=1e-5)
