"""Compact encoders and encoder-decoders are stock models of the size their shape says; checkpoints take up a task."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, BertConfig, BertModel, pipeline

from ract.checkpoint.live import load_for_task, load_model
from ract.cost import derive_encoder_decoder_shape, derive_encoder_shape
from ract.data.examples import Examples
from ract.data.tokenizer import copy_tokenizer, load_tokenizer
from ract.errors import BadInput
from ract.model.compact_encoder import new_encoder, new_encoder_decoder
from ract.model.origin import TaskLabels, checkpoint_shape
from ract.plan.graph import ModelSettings
from tests import examples

LABELS = TaskLabels(("bad", "good"))
SETTINGS = ModelSettings(64, 0.1)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples.classification(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples.translation(tmp_path_factory.mktemp("pairs"))


def trainable(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("hidden", "layers"), [(32, 1), (64, 3), (96, 2)])
def test_parameters_are_those_of_the_live_model(reviews: Examples, pairs: Examples, hidden: int, layers: int) -> None:
    tokenizer = load_tokenizer(reviews.tokenizer_dir)
    for labels in (0, 2):
        shape = derive_encoder_shape(reviews.vocab_size, hidden, layers, num_labels=labels)
        assert trainable(new_encoder(shape, tokenizer, seed=0, settings=SETTINGS, task=LABELS)) == shape.parameters
    both = derive_encoder_decoder_shape(pairs.vocab_size, hidden, layers)
    model = new_encoder_decoder(both, load_tokenizer(pairs.tokenizer_dir), seed=0, settings=SETTINGS)
    assert trainable(model) == both.parameters


def test_a_stacked_shape_is_that_of_a_deeper_model(reviews: Examples) -> None:
    shape = derive_encoder_shape(reviews.vocab_size, 32, 2, num_labels=2)
    deeper = derive_encoder_shape(reviews.vocab_size, 32, 6, num_labels=2)
    assert shape.stacked(3) == deeper and shape.ensembled(3).parameters == 3 * shape.parameters


def test_forward_flops_are_those_that_torch_counts(pairs: Examples, reviews: Examples) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    length = 32
    shape = derive_encoder_shape(reviews.vocab_size, 64, 2, num_labels=2)
    encoder = new_encoder(shape, load_tokenizer(reviews.tokenizer_dir), seed=0, settings=SETTINGS, task=LABELS).eval()
    both = derive_encoder_decoder_shape(pairs.vocab_size, 64, 2)
    pair = new_encoder_decoder(both, load_tokenizer(pairs.tokenizer_dir), seed=0, settings=SETTINGS).eval()
    for model, expected, inputs in (
        (encoder, shape.forward_flops_per_token(length) * length, {}),
        # A pair of 2 × 32 tokens; torch counts the masked half of the decoder's own attention too.
        (
            pair,
            both.forward_flops_per_token(2 * length) * 2 * length + 2 * 2 * 64 * length * length,
            {"decoder_input_ids": torch.zeros(1, length, dtype=torch.long)},
        ),
    ):
        model.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter:
            model(input_ids=torch.zeros(1, length, dtype=torch.long), attention_mask=torch.ones(1, length), **inputs)
        assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_the_same_seed_gives_the_same_model_and_leaves_the_generator_alone(reviews: Examples) -> None:
    shape = derive_encoder_shape(reviews.vocab_size, 32, 1, num_labels=2)
    tokenizer = load_tokenizer(reviews.tokenizer_dir)
    state = torch.random.get_rng_state()
    a, b, c = (new_encoder(shape, tokenizer, seed=s, settings=SETTINGS, task=LABELS).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], c[k]) for k in a)


def test_saved_models_open_in_plain_transformers_and_its_pipelines(
    tmp_path: Path, reviews: Examples, pairs: Examples
) -> None:
    tokenizer = load_tokenizer(reviews.tokenizer_dir)
    shape = derive_encoder_shape(reviews.vocab_size, 32, 1, num_labels=2)
    new_encoder(shape, tokenizer, seed=0, settings=SETTINGS, task=LABELS).save_pretrained(tmp_path / "c")
    copy_tokenizer(reviews.tokenizer_dir, tmp_path / "c")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "c").config.id2label == {0: "bad", 1: "good"}
    (found,) = pipeline("text-classification", model=str(tmp_path / "c"))("a lovely film")
    assert found["label"] in ("bad", "good") and 0.5 <= found["score"] <= 1

    both = derive_encoder_decoder_shape(pairs.vocab_size, 32, 1)
    languages = TaskLabels((), "en", "de")
    model = new_encoder_decoder(both, load_tokenizer(pairs.tokenizer_dir), seed=0, settings=SETTINGS, task=languages)
    model.save_pretrained(tmp_path / "t")
    copy_tokenizer(pairs.tokenizer_dir, tmp_path / "t")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t").eval()
    assert (again.config.source_language, again.config.target_language) == ("en", "de")
    inputs = load_tokenizer(tmp_path / "t")("the old tree", return_tensors="pt")
    assert again.generate(**inputs, max_new_tokens=5, num_beams=2).shape[0] == 1


def bert(path: Path, vocabulary: int = 400) -> Path:
    config = BertConfig(vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=64)  # fmt: skip
    BertModel(config).save_pretrained(path)
    return path


def test_a_bare_checkpoint_becomes_a_classifier_with_a_head_from_the_seed(tmp_path: Path) -> None:
    path = bert(tmp_path / "bert")
    values = TaskLabels(("a", "b", "c")).config_values()
    one, again, other = (load_for_task(path, "classification", values, seed=s) for s in (0, 0, 1))
    body = load_model(path).state_dict()
    assert all(torch.equal(value, one.state_dict()[f"bert.{name}"]) for name, value in body.items())
    assert torch.equal(one.classifier.weight, again.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert one.config.id2label == {0: "a", 1: "b", 2: "c"} and one.classifier.out_features == 3
    shape = checkpoint_shape(path, "classification", values)
    assert shape.parameters == sum(p.numel() for p in one.parameters())
    assert math.isclose(shape.ensembled(3).parameters, 3 * shape.parameters)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is of type bert, for which transformers has no model for translation"):
        checkpoint_shape(bert(tmp_path / "bert"), "translation", {})
