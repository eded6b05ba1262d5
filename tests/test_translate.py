"""Lines translated: as many out as in, in their order, each what the model itself generates for its sentences."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import ract
from ract.data.examples import Examples
from ract.errors import BadInput
from ract.runtime.translate import Translator, sentences
from tests import examples
from tests.task_models import ensemble, translator
from tests.text_models import word_piece_model

ODD = [
    "the red film",
    "",
    " \t ",
    "👩‍👩‍👧‍👦🇩🇪",
    "مرحبا بالعالم، هذا كتاب",
    "你好。再见！",
    "</s> <|pad|>",
    "a\u2028b\x0bc",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples.translation(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def directory(data: Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return translator(tmp_path_factory.mktemp("model") / "one", data)


@pytest.fixture(scope="module")
def reader(directory: Path) -> Translator:
    return Translator(directory)


def generated(path: Path, sentence: str, **options: int) -> str:
    model = AutoModelForSeq2SeqLM.from_pretrained(path, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    row = model.generate(**tokenizer(sentence, return_tensors="pt"), do_sample=False, **options)[0]
    return " ".join(tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False).split())


@pytest.mark.parametrize("beams", [1, 3])
def test_a_sentence_is_what_transformers_generates(directory: Path, reader: Translator, beams: int) -> None:
    found = reader.translate(["the old dog", "the new house and the red film"], num_beams=beams, max_new_tokens=8)
    for sentence, output in zip(["the old dog", "the new house and the red film"], found, strict=True):
        assert output == generated(directory, sentence, num_beams=beams, max_new_tokens=8)


def test_sentences_are_translated_one_by_one_and_joined(directory: Path, reader: Translator) -> None:
    options = {"num_beams": 1, "max_new_tokens": 6}
    line = "the old dog. The new house!"
    parts = [generated(directory, part, **options) for part in ("the old dog.", "The new house!")]
    assert reader.translate([line], **options) == [" ".join(parts)]
    assert reader.translate([line], split=False, **options) == [generated(directory, line, **options)]


def test_languages_without_spaces_are_joined_without_in_ensembles_too(data: Examples, tmp_path: Path) -> None:
    members = [translator(tmp_path / str(seed), data, seed, target_language="zh") for seed in (0, 1)]
    for path in (members[0], ensemble(tmp_path / "both", members)):
        one = Translator(path)
        first, second, both = one.translate(["the dog.", "The tree.", "the dog. The tree."], max_new_tokens=5)
        assert both == first + second


def test_every_line_is_answered_in_its_place_whatever_it_is(reader: Translator) -> None:
    together = reader.translate(ODD, num_beams=2, max_new_tokens=5, batch_size=3)
    assert together == [reader.translate([line], num_beams=2, max_new_tokens=5)[0] for line in ODD]
    assert together[1] == together[2] == ""
    assert all(len(output.splitlines()) <= 1 for output in together)
    assert reader.translate([]) == []


@pytest.mark.parametrize("text", ["x" * 20_000, "the old dog " * 1500, "字" * 3000])
def test_a_text_longer_than_the_model_can_look_at_is_divided_and_nothing_is_lost(reader: Translator, text: str) -> None:
    pieces = list(reader._fitting(text))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(len(reader.engine.tokenizer(piece)["input_ids"]) <= reader.limit for piece in pieces)
    if " " in text:
        assert {word for piece in pieces for word in piece.split()} == {"the", "old", "dog"}


def test_a_line_of_100_kilobytes_gives_one_line(reader: Translator) -> None:
    output = reader.translate(["dog " * 25_000, "end"], num_beams=1, max_new_tokens=1, batch_size=256)
    assert len(output) == 2 and output[1] == reader.translate(["end"], num_beams=1, max_new_tokens=1)[0]


def test_an_ensemble_of_equal_members_translates_as_one_does(
    directory: Path, reader: Translator, tmp_path: Path
) -> None:
    both = Translator(ensemble(tmp_path / "both", [directory, directory]))
    lines = ["the red film", "the old tree and the new dog"]
    for beams in (1, 4):
        options = {"num_beams": beams, "max_new_tokens": 9}
        assert both.translate(lines, **options) == reader.translate(lines, **options)


def test_beams_of_an_ensemble_do_not_depend_on_caches_or_on_the_batch(data: Examples, tmp_path: Path) -> None:
    members = [translator(tmp_path / str(seed), data, seed) for seed in (1, 2)]
    both = Translator(ensemble(tmp_path / "both", members))
    lines = ["the red film", "the old tree and the new dog", "the big book"]
    found = both.translate(lines, num_beams=4, max_new_tokens=9)
    assert found == [both.translate([line], num_beams=4, max_new_tokens=9)[0] for line in lines]
    both.engine.model.generation_config.use_cache = False
    assert both.translate(lines, num_beams=4, max_new_tokens=9) == found
    assert found != Translator(members[0]).translate(lines, num_beams=4, max_new_tokens=9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith paid 3.50 e.g. on Monday. Why?", ["Dr. Smith paid 3.50 e.g. on Monday.", "Why?"]),
        ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
        ("你好。再见！“好。” 真的？", ["你好。", "再见！", "“好。”", "真的？"]),
        ("مرحبا؟ كيف حالك؟", ["مرحبا؟", "كيف حالك؟"]),
        ("no end", ["no end"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@given(st.text(alphabet="aB .!?。！”’ 字\n", max_size=60))
def test_dividing_sentences_loses_nothing_but_spaces(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize("abbreviation", ["A. ", "Prof. ", "x e.g. "])
def test_a_long_line_of_abbreviations_is_one_sentence(abbreviation: str) -> None:
    text = abbreviation * (100_000 // len(abbreviation))
    (found,) = sentences(text + "End.")
    assert found.split() == [*text.split(), "End."]


def test_half_a_character_is_read_as_a_replaced_one(reader: Translator) -> None:
    options = {"num_beams": 1, "max_new_tokens": 4}
    assert reader.translate(["the \ud83d dog"], **options) == reader.translate(["the \ufffd dog"], **options)


def test_the_function_takes_one_text_or_many(directory: Path) -> None:
    options = {"num_beams": 1, "max_new_tokens": 4}
    assert ract.translate(directory, "the dog", **options) == ract.translate(
        str(directory), iter(["the dog"]), **options
    )


def test_what_is_wrong_is_said(tmp_path: Path, reader: Translator) -> None:
    with pytest.raises(BadInput, match="is of class BertForMaskedLM, not an encoder-decoder"):
        Translator(word_piece_model(tmp_path / "bert", "BERT, masked LM"))
    with pytest.raises(BadInput, match="at least 1"):
        reader.translate(["a"], num_beams=0)
