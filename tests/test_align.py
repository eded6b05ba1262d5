"""Alignment: what can be permuted in each architecture, and the directory that comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ract.aggregate.activations import match_activations
from ract.aggregate.align import align, exact_kinds, match_weights
from ract.aggregate.loaded import between, mean_loss, parameters
from ract.aggregate.permutation import KINDS, symmetries
from ract.checkpoint.directory import open_model, verify_files
from ract.errors import BadInput
from ract.model.anatomy import anatomy
from tests.pico import children, load, output, pico, save

EXPECTED = {
    "GPT-2": KINDS,  # fused query-key-value, stored transposed
    "GPT-NeoX": KINDS,  # query-key-value interleaved by head
    "OPT": KINDS,
    "Qwen3": KINDS,  # grouped queries, norms on query and key, tied embeddings
    "Phi-3": KINDS,  # fused gate and up, fused query-key-value with grouped queries
    "Mixtral": ("heads", "residual"),  # experts and router stay
    "BERT": ("feed_forward", "heads"),  # its output is the residual stream itself
    "BERT, masked LM": KINDS,
    "BERT, classification": KINDS,
    "ALBERT": ("feed_forward", "heads"),
    "T5": ("feed_forward", "residual"),  # a position bias per head is shared by all blocks
    "BART": KINDS,  # two stacks, cross-attention
    "Marian": ("feed_forward", "heads"),  # sinusoidal positions are added to the embeddings
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_permutations_that_are_exact_in_each_architecture(name: str) -> None:
    model = pico(name)
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    assert exact_kinds(model, symmetries(model, anatomy(config))) == EXPECTED[name]


@pytest.mark.parametrize("name", ["GPT-2", "Qwen3", "Phi-3", "BERT, classification", "T5, gated", "Marian"])
def test_the_aligned_model_computes_what_it_did_and_is_closer(tmp_path: Path, name: str) -> None:
    first, second = children(tmp_path, name)
    out = align(first, second, tmp_path / "aligned")
    before, after = output(load(second)), output(load(out))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    lineage = open_model(out).lineage
    assert lineage is not None and lineage.method == "align"
    assert lineage.metrics_after["distance"] < lineage.metrics_before["distance"]
    assert [parent.name for parent in lineage.parents] == ["child1", "child0"]
    assert verify_files(out)
    assert (out / "config.json").read_bytes() == (second / "config.json").read_bytes()


def test_bf16_weights_are_moved_not_changed(tmp_path: Path) -> None:
    paths = [save(pico("Llama", seed).to(torch.bfloat16), tmp_path / str(seed)) for seed in range(2)]
    moved = parameters(load(align(paths[0], paths[1], tmp_path / "aligned")))
    for name, parameter in parameters(load(paths[1])).items():
        assert moved[name].dtype == torch.bfloat16
        assert torch.equal(moved[name].flatten().sort().values, parameter.flatten().sort().values), name


def test_only_the_kinds_asked_for_move(tmp_path: Path) -> None:
    first, second = children(tmp_path, "Qwen3")
    moved = parameters(load(align(first, second, tmp_path / "aligned", kinds=["feed_forward"])))
    changed = {name for name, p in parameters(load(second)).items() if not torch.equal(p, moved[name])}
    assert changed and all(".mlp." in name for name in changed)


def test_query_heads_stay_with_their_key_value_head() -> None:
    model, other = pico("Llama", 0), pico("Llama", 1)
    allowed = symmetries(model, anatomy(model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}))
    found = match_weights(parameters(model), parameters(other), allowed)
    assert allowed.key_values
    for heads, kv in allowed.key_values.items():
        share = allowed.sizes[heads] // allowed.sizes[kv]
        assert torch.equal(found[heads].reshape(-1, share) // share, found[kv].unsqueeze(1).expand(-1, share))


def test_refusals_say_why(tmp_path: Path) -> None:
    first = save(pico("Llama"), tmp_path / "a")
    wider = save(pico("Llama", intermediate_size=32), tmp_path / "b")
    with pytest.raises(BadInput, match=r"is \(24, 16\) in .*a and \(32, 16\) in .*b"):
        align(first, wider, tmp_path / "out")
    with pytest.raises(BadInput, match='no permutation of "neurons"'):
        align(first, first, tmp_path / "out", kinds=["neurons"])
    with pytest.raises(BadInput, match="exists already"):
        align(first, first, first)
    assert not (tmp_path / "out").exists()


def test_units_are_told_by_what_they_do(tmp_path: Path) -> None:
    model, permuted = pico("Qwen3"), pico("Qwen3")
    shape = anatomy(model.config.to_dict() | {"architectures": ["Qwen3ForCausalLM"]})
    allowed, own = symmetries(model, shape), parameters(model)
    generator = torch.Generator().manual_seed(0)
    drawn = {g: index for kind in KINDS for g, index in allowed.random(kind, generator).items()}
    permuted.load_state_dict(allowed.apply(own, drawn), strict=False)
    tokens = torch.randint(3, 90, (8, 32), generator=generator)
    found = match_activations(model, permuted, shape, allowed, [{"input_ids": tokens}])
    assert {g: drawn[g][index].tolist() for g, index in found.items()} == {
        g: list(range(size)) for g, size in allowed.sizes.items()
    }


def test_with_data_the_better_of_both_matchings_is_taken(tmp_path: Path) -> None:
    first, second = children(tmp_path, "GPT-2")
    tokens = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": tokens, "labels": tokens}]
    halfway = {
        name: mean_loss(load(first), batches, between(parameters(load(first)), parameters(load(path)), 0.5))
        for name, path in {
            "weights": align(first, second, tmp_path / "by_weights"),
            "best": align(first, second, tmp_path / "by_both", batches=batches),
        }.items()
    }
    assert halfway["best"] <= halfway["weights"]
    lineage = open_model(tmp_path / "by_both").lineage
    assert lineage is not None and lineage.plan["matched_by"] in ("weights", "activations")
