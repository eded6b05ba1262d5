"""Figures of classifiers: each against its definition, the baseline against what a reader can work out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ract.data.examples import Examples
from ract.data.tokenizer import load_tokenizer
from ract.errors import BadInput
from ract.evaluate.classification import (
    calibration_error,
    encode,
    evaluate_classifier,
    figures,
    positions,
    predict,
    tfidf_baseline,
)
from tests import examples
from tests.pico import load, pico
from tests.task_models import classifier

NAMES = ["bad", "good", "odd"]
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
TRUE = [0, 1, 1, 2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples.classification(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="module")
def directory(data: Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("model") / "one", data)


def test_figures_by_hand() -> None:
    found = figures(PROBABILITIES, TRUE, NAMES)
    assert found["accuracy"] == 0.5 and found["examples"] == 4
    assert found["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert found["nats"] == pytest.approx(-(math.log(0.7) + math.log(0.8) + 2 * math.log(0.3)) / 4)
    assert found["per_class"][0] == {
        "label": "bad",
        "precision": 0.5,
        "recall": 1.0,
        "f1": pytest.approx(2 / 3),
        "support": 1,
    }
    assert found["per_class"][2]["f1"] == 0 and found["per_class"][1]["recall"] == 0.5
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.5 + 0) / 3)


def test_a_class_that_never_occurs_does_not_count_and_certainty_gone_wrong_is_finite() -> None:
    sure = figures(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), [0, 0], NAMES)
    assert sure["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert math.isfinite(sure["nats"]) and sure["nats"] > 10


def test_calibration_error_is_the_gap_of_each_bin_weighted() -> None:
    confident = np.array([[0.9, 0.1]] * 10)
    assert calibration_error(confident, np.array([0] * 9 + [1])) == pytest.approx(0)
    assert calibration_error(confident, np.array([0] * 4 + [1] * 6)) == pytest.approx(0.5)
    mixed = np.concatenate([confident, [[0.4, 0.6]] * 10])
    assert calibration_error(mixed, np.array([0] * 4 + [1] * 16)) == pytest.approx(0.5 * 0.5 + 0.5 * 0.4)
    assert calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.01, 5), st.floats(0.01, 5), st.floats(0.01, 5)), min_size=1))
def test_figures_agree_with_each_other(rows: list[tuple[int, float, float, float]]) -> None:
    weights = np.array([row[1:] for row in rows])
    found = figures(weights / weights.sum(1, keepdims=True), [row[0] for row in rows], NAMES)
    confusion = np.array(found["confusion"])
    assert confusion.sum() == len(rows) == found["examples"]
    assert found["accuracy"] == pytest.approx(np.trace(confusion) / len(rows))
    assert confusion.sum(1).tolist() == [one["support"] for one in found["per_class"]]
    assert 0 <= found["ece"] <= 1 and found["nats"] >= 0


def test_domains_are_measured_apart() -> None:
    found = figures(PROBABILITIES, TRUE, NAMES, ["a", "a", "b", "b"])["by_domain"]
    assert {name: (one["accuracy"], one["examples"]) for name, one in found.items()} == {"a": (1.0, 2), "b": (0.0, 2)}


def test_a_batch_changes_nothing_and_long_texts_are_counted(data: Examples, directory: Path) -> None:
    model, tokenizer = load(directory), load_tokenizer(directory)
    rows = data.rows("test")
    texts = [row["text"] for row in rows] + ["film " * 100]
    seen: list[tuple[int, int]] = []
    together, cut = predict(
        model, tokenizer, texts, batch_size=7, progress=lambda _, done, total: seen.append((done, total))
    )
    alone = np.concatenate([predict(model, tokenizer, [text])[0] for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert cut.tolist() == [False] * len(rows) + [True] and seen[-1] == (len(texts), len(texts))
    labels = [data.labels.index(row["label"]) for row in rows] + [0]
    found = evaluate_classifier(model, tokenizer, texts, labels, domains=["x"] * len(rows) + ["y"])
    assert found["truncated"] == 1 and found["by_domain"]["y"]["examples"] == 1
    with torch.no_grad():
        inputs = tokenizer(
            [row["text"] for row in rows], padding=True, return_tensors="pt", return_token_type_ids=False
        )
        loss = model(**inputs, labels=torch.tensor(labels[:-1])).loss
    own = evaluate_classifier(model, tokenizer, texts[:-1], labels[:-1])
    assert own["nats"] == pytest.approx(float(loss), abs=1e-5)


def test_texts_are_encoded_as_in_training(data: Examples, directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    for split in ("train", "test"):
        for number, row in enumerate(data.rows(split)[:20]):
            assert encode(tokenizer, row["text"], data.max_tokens)[0] == data.tokens[split][number].tolist()
    spelled = "fine [SEP] [MASK] <|pad|>"
    numbers, cut = encode(tokenizer, spelled, 32)
    assert numbers.count(tokenizer.sep_token_id) == 1 and not cut and tokenizer.mask_token_id not in numbers
    assert encode(tokenizer, "film " * 50, 8)[1] and len(encode(tokenizer, "film " * 50, 8)[0]) == 8
    assert len(encode(tokenizer, "film " * 50, None)[0]) > 50


def test_positions_are_the_fewer_of_the_models_and_the_tokenizers(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    assert positions(load(directory), tokenizer) == 32
    tokenizer.model_max_length = 10**30
    assert positions(load(directory), tokenizer) == 64
    assert positions(pico("RoBERTa, classification"), tokenizer) == 62
    assert positions(pico("T5"), tokenizer) is None


def test_nothing_to_measure_is_said(directory: Path) -> None:
    with pytest.raises(BadInput, match="no texts to evaluate"):
        figures(np.zeros((0, 2)), [], ["a", "b"])


def test_a_tokenizer_of_another_model_is_said(directory: Path) -> None:
    small = pico("BERT, classification", vocab_size=20)
    with pytest.raises(BadInput, match="has only 20 embeddings"):
        predict(small, load_tokenizer(directory), ["a text of many words"])


def split(count: int, seed: int) -> tuple[list[str], list[int]]:
    rows = examples.reviews(count, seed)
    return [row["text"] for row in rows], [int(row["label"] == "good") for row in rows]


def test_the_baseline_learns_what_can_be_learned_and_says_what_it_tried() -> None:
    train, valid, test = split(150, 1), split(40, 2), split(60, 3)
    seen: list[tuple[int, int]] = []
    found = tfidf_baseline(
        train, valid, test, ["bad", "good"], domains=["x"] * 60, progress=lambda _, *n: seen.append(n)
    )
    assert found["accuracy"] > 0.95 and found["by_domain"]["x"]["examples"] == 60
    assert len(found["tried"]) == 12 and found["tried"][found["chosen"]] == max(found["tried"].values())
    assert seen[-1] == (12, 12)


def test_text_without_spaces_is_read_by_characters() -> None:
    texts = [f"这本书很{'好' if n % 2 else '差'}{'的一二三四'[n % 5]}" for n in range(60)]
    part = (texts, [n % 2 for n in range(60)])
    found = tfidf_baseline(part, part, part, ["差", "好"])
    assert found["accuracy"] == 1 and all(kind.startswith("characters") for kind in found["tried"])


def test_a_baseline_without_terms_is_said() -> None:
    part = (["一", "二"], [0, 1])
    with pytest.raises(BadInput, match="finds no terms"):
        tfidf_baseline(part, part, part, ["a", "b"])
