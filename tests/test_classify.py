"""Classes for texts: the model's own probabilities, in the order of the texts, whatever the texts are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, pipeline

import ract
from ract.data.examples import Examples
from ract.data.tokenizer import load_tokenizer
from ract.errors import BadInput
from ract.runtime.classify import TextClassifier
from tests import examples
from tests.pico import load
from tests.task_models import classifier, ensemble
from tests.text_models import byte_level_model, word_piece_model

ODD = [
    "a fine film",
    "",
    "   ",
    "👩‍👩‍👧‍👦🇩🇪👍🏽",
    "مرحبا بالعالم، هذا كتاب",
    "שלום עולם",
    "差差差",
    "a\x00b\u2028c",
    "x" * 100_000,
    "dull",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples.classification(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="module")
def directory(data: Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("model") / "one", data)


@pytest.fixture(scope="module")
def reader(directory: Path) -> TextClassifier:
    return TextClassifier(directory)


def test_probabilities_are_those_of_the_plain_pipeline(directory: Path, reader: TextClassifier) -> None:
    texts = [row["text"] for row in examples.reviews(12, seed=5)]
    plain = pipeline("text-classification", model=str(directory), top_k=None)
    for text, found in zip(texts, reader.classify(texts, batch_size=5), strict=True):
        expected = {one["label"]: one["score"] for one in plain([text])[0]}
        assert found.probabilities == pytest.approx(expected, abs=1e-5)
        assert found.label == max(expected, key=lambda name: expected[name])
        assert found.probability == found.probabilities[found.label] and not found.truncated


def test_every_text_is_answered_in_its_place_whatever_it_is(reader: TextClassifier) -> None:
    together = reader.classify(ODD, batch_size=4)
    assert len(together) == len(ODD)
    for text, found in zip(ODD, together, strict=True):
        alone = reader.classify([text])[0]
        assert found.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        assert sum(found.probabilities.values()) == pytest.approx(1)
        assert found.truncated == (len(reader.engine.tokenizer(text)["input_ids"]) > reader.limit)
    assert [found.truncated for found in together].count(True) in range(1, len(ODD))
    assert reader.classify([]) == []


def test_windows_read_a_long_text_whole_and_average(data: Examples, reader: TextClassifier) -> None:
    limit = data.max_tokens
    assert reader.limit == limit
    text = " ".join(row["text"] for row in examples.reviews(30, seed=2))
    numbers = reader.engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    inside, overlap = limit - 2, limit // 4
    starts = range(0, len(numbers) - overlap, inside - overlap)
    frame = reader.engine.tokenizer("film")["input_ids"]
    windows = [[frame[0], *numbers[start : start + inside], frame[-1]] for start in starts]
    assert len(windows) > 3
    with torch.no_grad():
        each = [load(reader.path)(input_ids=torch.tensor([w])).logits.softmax(-1)[0].numpy() for w in windows]
    found = reader.classify([text, "fine"], windows=True)
    np.testing.assert_allclose(list(found[0].probabilities.values()), np.mean(each, axis=0), atol=1e-5)
    assert not found[0].truncated
    assert found[1].probabilities == pytest.approx(reader.classify(["fine"])[0].probabilities, abs=1e-6)


def test_a_special_token_spelled_out_is_text(reader: TextClassifier) -> None:
    seen = [reader.engine.tokenizer.mask_token, reader.engine.tokenizer.sep_token, reader.engine.tokenizer.pad_token]
    text = f"fine {' '.join(seen)} film"
    framed = reader.engine.tokenizer(text)["input_ids"]
    plain = reader.engine.tokenizer(text, split_special_tokens=True)["input_ids"]
    assert framed != plain
    with torch.no_grad():
        expected = load(reader.path)(input_ids=torch.tensor([plain])).logits.softmax(-1)[0]
    assert list(reader.classify([text])[0].probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_an_ensemble_classifies_with_the_mean_of_its_members(data: Examples, directory: Path, tmp_path: Path) -> None:
    other = classifier(tmp_path / "other", data, seed=1)
    both = TextClassifier(ensemble(tmp_path / "both", [directory, other]))
    texts = ODD[:7]
    logits = [
        np.log([list(one.probabilities.values()) for one in TextClassifier(path).classify(texts)])
        for path in (directory, other)
    ]
    expected = np.exp(np.mean(logits, axis=0))
    expected /= expected.sum(1, keepdims=True)
    found = [list(one.probabilities.values()) for one in both.classify(texts)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert both.labels == list(data.labels)


def test_the_function_takes_one_text_or_many(directory: Path, reader: TextClassifier) -> None:
    assert ract.classify(directory, "fine") == reader.classify(["fine"])
    assert ract.classify(str(directory), iter(["fine", "dull"])) == reader.classify(["fine", "dull"])


def test_half_a_character_is_read_as_a_replaced_one(reader: TextClassifier) -> None:
    found = reader.classify(["fine \ud83d film \udc4d", "\ud83d\udc4d"])
    assert found == reader.classify(["fine \ufffd film \ufffd", "👍"])


def test_a_decoder_without_a_padding_token_classifies_texts_one_by_one(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level_model(tmp_path / "tokens"))
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64, num_labels=2)
    torch.manual_seed(0)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.pad_token = tokenizer.eos_token  # the tokenizer could pad, and the model would not know it
    tokenizer.save_pretrained(tmp_path / "model")
    one = TextClassifier(tmp_path / "model")
    texts = ["a cat", "once upon a time there was a cat", "mat"]
    for text, found in zip(texts, one.classify(texts), strict=True):
        with torch.no_grad():
            logits = load(one.path)(**tokenizer(text, return_tensors="pt")).logits
        assert list(found.probabilities.values()) == pytest.approx(logits.softmax(-1)[0].tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_labels": 1}, "has one class only"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "problem_type multi_label_classification"),
    ],
)
def test_heads_that_do_not_choose_one_class_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        TextClassifier(word_piece_model(tmp_path / "model", "BERT, classification", **changes))


def test_what_is_wrong_is_said(tmp_path: Path, reader: TextClassifier) -> None:
    with pytest.raises(BadInput, match="is of class Qwen3ForCausalLM, not a text classifier"):
        TextClassifier(byte_level_model(tmp_path / "decoder"))
    with pytest.raises(BadInput, match="batch_size = 0"):
        reader.classify(["a"], batch_size=0)
