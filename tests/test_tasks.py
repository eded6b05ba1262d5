"""Classifiers and translators side by side: the same rows for all, labels by name, figures that single runs give."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import ract
from ract.data.examples import Examples
from ract.data.tokenizer import load_tokenizer
from ract.errors import BadInput
from ract.evaluate.classification import evaluate_classifier
from ract.evaluate.language_modeling import evaluate_directory
from ract.evaluate.speed import measure_alone, measure_texts
from ract.evaluate.tasks import class_number, compare_on_rows
from tests import examples
from tests.pico import load, pico
from tests.task_models import classifier, ensemble, reviews_and_pairs, translator
from tests.text_models import TEXT, byte_level_model

SPEED = {"parameters", "size_bytes", "latency_ms", "texts_per_second", "peak_memory_bytes"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, Examples]:
    return reviews_and_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def classifiers(data: tuple[Examples, Examples], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("classifiers")
    members = [classifier(folder / str(seed), data[0], seed) for seed in (0, 1)]
    return [*members, ensemble(folder / "both", members)]


@pytest.fixture(scope="module")
def translating(data: tuple[Examples, Examples], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return translator(tmp_path_factory.mktemp("translator") / "one", data[1])


def test_classifiers_are_compared_on_the_same_rows(classifiers: list[Path], tmp_path: Path) -> None:
    rows = examples.reviews(20, seed=9)
    file = examples.write_rows(tmp_path / "rows.jsonl", [*rows, {"text": " ", "label": "bad"}])
    found = compare_on_rows(classifiers, "classification", [file], speed=False)
    assert [row["model"] for row in found] == list(map(str, classifiers))
    for row, path in zip(found, classifiers, strict=True):
        labels = [int(one["label"] == "good") for one in rows]
        alone = evaluate_classifier(load(path), load_tokenizer(path), [one["text"] for one in rows], labels)
        assert {key: row[key] for key in alone} == alone and row["skipped"] == 1
    assert len({row["nats"] for row in found}) == 3


def test_columns_by_other_names_and_labels_by_other_words(classifiers: list[Path], tmp_path: Path) -> None:
    rows = examples.reviews(12, seed=4)
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review", "stars"])
        writer.writerows([n, f"{row['text']}\n", int(row["label"] == "good")] for n, row in enumerate(rows))
    given = ([str(tmp_path / "rows.csv")],)
    plain = examples.write_rows(tmp_path / "rows.jsonl", [row | {"text": f"{row['text']}\n"} for row in rows])
    options = {"speed": False, "fields": ("review", "stars")}
    with pytest.raises(BadInput, match=r'line 3 has the label "\d".*bad, good. Say which is which: --label \d=NAME'):
        compare_on_rows(classifiers[:1], "classification", *given, **options)
    found = compare_on_rows(classifiers[:1], "classification", *given, label_names={"0": "bad", "1": "good"}, **options)
    assert found == compare_on_rows(classifiers[:1], "classification", [plain], speed=False)


def test_a_number_is_a_class_only_where_classes_have_no_names() -> None:
    named = pico("BERT, classification", id2label={0: "a", 1: "b", 2: "7"}).config
    nameless = pico("BERT, classification").config
    assert class_number("2", nameless, "line 1", {}) == 2
    assert class_number("b", named, "line 1", {}) == 1 and class_number("x", named, "line 1", {"x": "a"}) == 0
    assert class_number("7", named, "line 1", {}) == 2
    for label in ("1", "c"):
        with pytest.raises(BadInput, match="line 1"):
            class_number(label, named, "line 1", {})


def test_of_too_much_text_rows_from_all_over_are_taken(classifiers: list[Path], tmp_path: Path) -> None:
    rows = [{"text": f"film {number:03}", "label": "bad" if number < 50 else "good"} for number in range(100)]
    file = examples.write_rows(tmp_path / "rows.jsonl", rows)
    found = compare_on_rows(classifiers[:1], "classification", [file], limit_bytes=200, speed=False)[0]
    assert found["examples"] == 25 and [one["support"] for one in found["per_class"]] == [13, 12]


def test_translators_from_aligned_files_and_rows(translating: Path, tmp_path: Path) -> None:
    pairs = examples.sentences(6, seed=3)
    files = examples.write_pairs(tmp_path, "some", pairs)
    seen: list[tuple[str, int, int]] = []
    found = compare_on_rows(
        [translating], "translation", files, num_beams=1, speed=False, progress=lambda *event: seen.append(event)
    )[0]
    assert found["examples"] == 6 and found["languages"] == "en-de" and [done for _, done, _ in seen] == [0, 6, 1]
    rows = examples.write_rows(tmp_path / "rows.jsonl", [{"english": s, "chinese": t} for s, t in pairs])
    other = compare_on_rows(
        [translating], "translation", [rows], num_beams=1, speed=False, fields=("english", "chinese"),
        languages=("en", "zh"),
    )[0]  # fmt: skip
    assert other["outputs"] == found["outputs"] and "tok:zh" in other["bleu_signature"]


def test_the_function_measures_one_model_for_any_task(
    classifiers: list[Path], translating: Path, tmp_path: Path
) -> None:
    rows = examples.write_rows(tmp_path / "rows.jsonl", examples.reviews(8))
    expected = compare_on_rows(classifiers[:1], "classification", [rows], speed=False)[0]
    assert ract.evaluate(str(classifiers[0]), rows, task="classification") == expected
    files = examples.write_pairs(tmp_path, "some", examples.sentences(3))
    found = ract.evaluate(translating, files, task="translation", num_beams=1)
    assert found == compare_on_rows([translating], "translation", files, num_beams=1, speed=False)[0]
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    decoder = byte_level_model(tmp_path / "decoder")
    text = str(tmp_path / "text.txt")
    assert ract.evaluate(decoder, text, limit_bytes=900) == evaluate_directory(decoder, [text], limit_bytes=900)
    with pytest.raises(BadInput, match=r'no task "clasification".*Did you mean "classification"'):
        ract.evaluate(classifiers[0], rows, task="clasification")


def test_unknown_languages_tasks_and_models_are_said(
    data: tuple[Examples, Examples], translating: Path, classifiers: list[Path], tmp_path: Path
) -> None:
    files = examples.write_pairs(tmp_path, "some", examples.sentences(3))
    nameless = translator(tmp_path / "nameless", data[1], target_language="")
    with pytest.raises(BadInput, match="does not say what language"):
        compare_on_rows([nameless], "translation", files, speed=False)
    with pytest.raises(BadInput, match='no task "translate"'):
        compare_on_rows([translating], "translate", files)
    with pytest.raises(BadInput, match="not a text classifier"):
        rows = examples.write_rows(tmp_path / "rows.jsonl", examples.reviews(3))
        compare_on_rows([translating], "classification", [rows])
    with pytest.raises(BadInput, match="nothing to evaluate on"):
        blank = examples.write_rows(tmp_path / "blank.jsonl", [{"text": " ", "label": "bad"}])
        compare_on_rows(classifiers, "classification", [blank])


def test_speed_of_classifiers_and_translators(translating: Path, classifiers: list[Path]) -> None:
    texts = ["the old dog", "the tree"] * 10
    for path, task in ((classifiers[0], "classification"), (translating, "translation")):
        found = measure_texts(path, task, texts, batch_size=4, num_beams=1, repeats=1)
        assert found.keys() == SPEED and all(0 < value < float("inf") for value in found.values())
        assert found["size_bytes"] == (path / "model.safetensors").stat().st_size
        assert found["parameters"] == sum(parameter.numel() for parameter in load(path).parameters())


@pytest.mark.slow
def test_a_process_of_its_own_takes_any_text(classifiers: list[Path]) -> None:
    texts = ["好" * 70_000, "مرحبا", "🙂\n"]
    assert measure_alone(classifiers[0], task="classification", texts=texts, threads=1).keys() == SPEED
    with pytest.raises(BadInput, match="not an encoder-decoder"):
        measure_alone(classifiers[0], task="translation", texts=texts)
