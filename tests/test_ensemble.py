"""Ensembles: saved and loaded as any model, losses, generation with caches, nesting, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from ract.aggregate import ensemble
from ract.aggregate.engine import execute as engine_execute
from ract.aggregate.recipe import Recipe
from ract.checkpoint.directory import open_model
from ract.errors import BadInput
from ract.model.anatomy import anatomy
from ract.model.ensemble import EnsembleCache, EnsembleConfig, EnsembleForCausalLM
from tests.pico import children, inputs, load, output, pico, save
from tests.reference import execute

GENERATING = ["GPT-2", "Gemma 2", "T5"]


def recipe(paths: list[Path], weights: Any = None, **options: Any) -> Recipe:
    return ensemble.recipe([open_model(path) for path in paths], weights or [1 / len(paths)] * len(paths), **options)


def built(paths: list[Path], out: Path, weights: Any = None, **options: Any) -> Any:
    return load(execute(recipe(paths, weights, **options), [open_model(path) for path in paths], out))


@pytest.mark.parametrize("name", ["Mixtral", "Marian"])
def test_saved_and_loaded_it_is_the_same_model(name: str, tmp_path: Path) -> None:
    parent = built(children(tmp_path, name), tmp_path / "parent", [0.3, 0.7])
    again = load(save(parent, tmp_path / "again"))
    assert again.config.weights == [0.3, 0.7]
    assert torch.equal(output(again), output(parent))
    saved, written = (anatomy(tmp_path / name).parts.keys() for name in ("again", "parent"))
    assert saved == written


def test_the_auto_classes_know_it(tmp_path: Path) -> None:
    built(children(tmp_path / "a", "Llama"), tmp_path / "decoders")
    built(children(tmp_path / "b", "T5"), tmp_path / "both")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "decoders", local_files_only=True)
    assert isinstance(found, EnsembleForCausalLM)
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "both", local_files_only=True).can_generate()


def test_members_of_different_architectures(tmp_path: Path) -> None:
    paths = [save(pico(name), tmp_path / name) for name in ("GPT-2", "Llama", "Mixtral")]
    parent = built(paths, tmp_path / "parent", [0.2, 0.3, 0.5])
    given = inputs(parent)
    expected = sum(a * output(load(path), given) for a, path in zip([0.2, 0.3, 0.5], paths, strict=True))
    torch.testing.assert_close(output(parent, given), expected)
    assert torch.equal(*(generated(parent, use_cache=cached) for cached in (True, False)))


def test_probabilities_are_mixed(tmp_path: Path) -> None:
    paths = children(tmp_path, "GPT-NeoX")
    parent = built(paths, tmp_path / "parent", [0.25, 0.75], mode="probabilities")
    given = inputs(parent)
    a, b = (output(load(path), given).softmax(-1) for path in paths)
    torch.testing.assert_close(output(parent, given).softmax(-1), 0.25 * a + 0.75 * b)


def test_a_child_of_no_weight_adds_nothing_in_either_mode(tmp_path: Path) -> None:
    paths = children(tmp_path, "Llama")
    for mode in ("logits", "probabilities"):
        parent = built(paths, tmp_path / mode, [1.0, 0.0], mode=mode)
        ours, theirs = output(parent), output(load(paths[0]))
        torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1))


@pytest.mark.parametrize("name", ["Llama", "BERT, masked LM", "BERT, classification", "T5", "BART"])
def test_the_loss_of_one_member_is_its_own(name: str, tmp_path: Path) -> None:
    paths = children(tmp_path, name, 1)
    parent, child = built(paths, tmp_path / "parent"), load(paths[0])
    given = {key: value for key, value in inputs(child).items() if "decoder" not in key}
    labels = given["input_ids"].clone()
    labels[:, :2] = -100
    given["labels"] = torch.tensor([0, 2]) if "classification" in name else labels
    loss = parent(**given).loss
    torch.testing.assert_close(loss, child(**given).loss)
    loss.backward()
    gradients = [parameter.grad for parameter in parent.parameters() if parameter.requires_grad]
    assert sum(grad is not None and bool(grad.abs().sum() > 0) for grad in gradients) > len(gradients) / 2


def generated(model: PreTrainedModel, **options: Any) -> torch.Tensor:
    ids = inputs(model)["input_ids"]
    mask = torch.ones_like(ids)
    if not model.config.is_encoder_decoder:
        mask[0, :3] = 0  # left padding: positions must follow the mask
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0, **options}
    torch.manual_seed(0)
    return model.generate(ids, attention_mask=mask, **settings)


@pytest.mark.parametrize("name", GENERATING)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 20}])
def test_generation_with_caches_is_generation_without(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    parent = built(children(tmp_path, name), tmp_path / "parent", [0.3, 0.7])
    cached, plain = (generated(parent, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, plain)
    assert cached.shape[1] >= 8


@pytest.mark.parametrize("name", GENERATING)
def test_equal_members_generate_what_one_does(name: str, tmp_path: Path) -> None:
    child = pico(name)
    path = save(child, tmp_path / "child")
    parent = built([path, path], tmp_path / "parent")
    for options in ({}, {"num_beams": 2}):
        assert torch.equal(generated(parent, **options), generated(child, **options))


def test_a_cache_of_all_members_grows_with_the_text(tmp_path: Path) -> None:
    parent = built(children(tmp_path, "Llama"), tmp_path / "parent")
    given = inputs(parent)
    whole = output(parent, given)
    with torch.no_grad():
        first = parent(given["input_ids"][:, :4], use_cache=True)
        assert isinstance(first.past_key_values, EnsembleCache)
        assert first.past_key_values.get_seq_length() == 4
        rest = parent(given["input_ids"][:, 4:], past_key_values=first.past_key_values, logits_to_keep=1)
    assert first.past_key_values.get_seq_length() == 7
    assert rest.logits.shape == (2, 1, 96)
    torch.testing.assert_close(rest.logits[:, -1], whole[:, -1])
    with pytest.raises(BadInput, match="cannot continue from a DynamicCache"):
        from transformers import DynamicCache

        generated(parent, past_key_values=DynamicCache())


def test_children_in_half_precision(tmp_path: Path) -> None:
    paths = [save(pico("Llama", seed).bfloat16(), tmp_path / str(seed)) for seed in (0, 1)]
    parent = built(paths, tmp_path / "parent")
    assert {parameter.dtype for parameter in parent.parameters()} == {torch.bfloat16}
    given = inputs(parent)
    expected = sum(0.5 * output(load(path), given).float() for path in paths)
    assert torch.equal(output(parent, given), expected)


def test_the_engine_writes_what_the_reference_writes(tmp_path: Path) -> None:
    paths = children(tmp_path, "Mixtral")
    opened = [open_model(path) for path in paths]
    (tmp_path / "engine").mkdir()
    engine_execute(recipe(paths, [0.25, 0.75]), opened, tmp_path / "engine")
    execute(recipe(paths, [0.25, 0.75]), opened, tmp_path / "reference")
    ours, theirs = load(tmp_path / "engine"), load(tmp_path / "reference")
    given = inputs(ours)
    assert torch.equal(output(ours, given), output(theirs, given))


def test_nested_ensembles_of_another_mode_are_refused(tmp_path: Path) -> None:
    paths = children(tmp_path, "Llama")
    built(paths, tmp_path / "inner", mode="probabilities")
    with pytest.raises(BadInput, match="adds probabilities, so its members cannot join an ensemble that adds logits"):
        recipe([tmp_path / "inner", paths[0]])


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("BERT", "BERT"), "has no logits that an ensemble could add"),
        (("Llama", "T5"), "fits in an EnsembleForCausalLM and .* in an EnsembleForSeq2SeqLM"),
        (("BERT, classification", "BERT, masked LM"), "fits in an"),
    ],
)
def test_children_of_different_tasks_are_refused(names: tuple[str, str], problem: str, tmp_path: Path) -> None:
    paths = [save(pico(name), tmp_path / str(index)) for index, name in enumerate(names)]
    with pytest.raises(BadInput, match=problem):
        recipe(paths)


def test_outputs_that_differ_in_meaning_are_refused(tmp_path: Path) -> None:
    wide = [save(pico("Llama", vocab_size=size), tmp_path / str(size)) for size in (96, 97)]
    with pytest.raises(BadInput, match="vocab_size"):
        recipe(wide)
    labels = [{0: "bad", 1: "good", 2: "odd"}, {0: "good", 1: "bad", 2: "odd"}]
    named = [save(pico("BERT, classification", id2label=one), tmp_path / one[0]) for one in labels]
    with pytest.raises(BadInput, match="id2label"):
        recipe(named)


def test_weights_by_group_and_unknown_modes_are_refused(tmp_path: Path) -> None:
    paths = children(tmp_path, "Llama")
    with pytest.raises(BadInput, match="one weight for each model"):
        recipe(paths, {"embeddings": [0.5, 0.5]})
    with pytest.raises(BadInput, match='"votes" is no mode'):
        recipe(paths, mode="votes")
    with pytest.raises(BadInput, match="negative weights"):
        recipe(paths, [1.5, -0.5], mode="probabilities")


def test_configs_that_make_no_ensemble_are_refused() -> None:
    member = {**pico("Llama").config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    with pytest.raises(BadInput, match="2 members has 1 weights"):
        EnsembleConfig(members=[member] * 2, weights=[1.0])
    with pytest.raises(BadInput, match="has no members"):
        EnsembleForCausalLM(EnsembleConfig())
    with pytest.raises(BadInput, match=r"members differ in vocab_size: \[96, 97\]"):
        EnsembleForCausalLM(EnsembleConfig(members=[member, {**member, "vocab_size": 97}]))


def test_the_anatomy_of_an_ensemble_has_the_stacks_of_its_members(tmp_path: Path) -> None:
    built(children(tmp_path, "T5"), tmp_path / "parent")
    names = [stack.name for stack in anatomy(tmp_path / "parent").stacks]
    assert names == [f"members.{i}.{side}" for i in (0, 1) for side in ("encoder", "decoder")]
