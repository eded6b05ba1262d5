"""ract classify, translate and evaluate --task: a line for every text, whatever bytes arrive, one line per mistake."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from ract.cli.lines import _arriving, texts_of
from ract.data.examples import Examples
from ract.errors import BadInput
from tests import examples
from tests.conftest import Ract
from tests.task_models import classifier, ensemble, reviews_and_pairs, translator

ODD = (
    "\ufeffa fine film\n\n   \n👩‍👩‍👧‍👦🇩🇪\nمرحبا بالعالم\r\na\u2028b\x0b\x85c\n".encode()
    + b"caf\xe9 \xff\n"
    + b"x" * 100_000
    + b"\nlast"
)
LINES = 9


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, Examples]:
    return reviews_and_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def classifying(data: tuple[Examples, Examples], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifiers")
    return ensemble(folder / "both", [classifier(folder / str(seed), data[0], seed) for seed in (0, 1)])


@pytest.fixture(scope="module")
def translating(data: tuple[Examples, Examples], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return translator(tmp_path_factory.mktemp("translator") / "one", data[1])


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(ODD), encoding="ascii"))


def test_classify_answers_every_line_of_standard_input(ract: Ract, classifying: Path, stdin: None) -> None:
    code, out, error = ract("classify", classifying, "-", "--batch-size", 3)
    lines = out.splitlines()
    assert code == 0 and len(lines) == LINES
    assert all(label in ("bad", "good") and 0.5 <= float(p) <= 1 for label, p in (line.split("\t") for line in lines))
    assert "standard input line 7 is not UTF-8 (byte 3); bad bytes are replaced" in error
    assert "cut after 32 tokens; --windows reads all of it" in error


def test_a_file_texts_and_windows_give_the_same_answers(ract: Ract, classifying: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes(ODD)
    given = ("classify", classifying, "--file", tmp_path / "texts.txt", "--json")
    rows = [json.loads(line) for line in ract(*given)[1].splitlines()]
    assert len(rows) == LINES and not rows[0]["truncated"] and rows[7]["truncated"]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)
    alone = json.loads(ract("classify", classifying, "a fine film", "--json")[1])
    assert alone["probabilities"] == pytest.approx(rows[0]["probabilities"], abs=1e-5)
    code, out, error = ract(*given, "--windows")
    assert code == 0 and "cut" not in error and not any(json.loads(line)["truncated"] for line in out.splitlines())


def test_translate_gives_as_many_lines_as_it_gets(
    ract: Ract, translating: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = ODD.replace(b"x" * 100_000, b"x" * 2000)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(odd), encoding="ascii"))
    options = ["--beams", 1, "--max-new-tokens", 2]
    code, out, error = ract("translate", translating, "-", *options)
    lines = out.split("\n")
    assert code == 0 and len(lines) == LINES + 1 and lines[1] == lines[2] == lines[-1] == "" and lines[0] != ""
    assert "line 7 is not UTF-8" in error and len(error.splitlines()) == 1
    (tmp_path / "texts.txt").write_bytes(odd)
    rows = ract("translate", translating, "--file", tmp_path / "texts.txt", "--json", "--batch-size", 2, *options)[1]
    found = [json.loads(row) for row in rows.split("\n")[:-1]]
    assert [row["translation"] for row in found] == lines[:-1] and found[0]["source"] == "a fine film"
    texts = ["the dog", "", "the tree"]
    assert ract("translate", translating, *texts, *options)[1].split("\n")[1] == ""


def test_an_answer_does_not_wait_for_the_next_line() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as binary, open(writing, "wb", buffering=0) as writer:  # noqa: PTH123 (descriptors)
        groups = _arriving(binary, 4)
        writer.write(b"eins\n")
        assert next(groups) == ["eins"]
        writer.write(b"zwei\ndr")
        assert next(groups) == ["zwei"]
        writer.write(b"ei\n\n")
        writer.close()
        assert [line for group in groups for line in group] == ["drei", ""]


def test_lines_come_in_groups_of_the_batch(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("".join(f"{n}\n" for n in range(7)))
    assert [len(group) for group in texts_of([], tmp_path / "texts.txt", 3)] == [3, 3, 1]
    assert list(texts_of(["a", "b", "c"], None, 2)) == [["a", "b"], ["c"]]
    (tmp_path / "empty.txt").touch()
    assert list(texts_of([], tmp_path / "empty.txt", 3)) == []


def test_bytes_from_the_shell_are_mended(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(texts_of([os.fsdecode(b"caf\xe9"), "ok"], None, 8)) == [["caf\ufffd", "ok"]]
    assert "text 1 is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_named_rather_than_garbled(tmp_path: Path, encoding: str) -> None:
    mark = b"\xfe\xff" if encoding.endswith("be") else b""
    (tmp_path / "texts.txt").write_bytes(mark + "gut\n".encode(encoding))
    with pytest.raises(BadInput, match=r"is UTF-16.*iconv"):
        list(texts_of([], tmp_path / "texts.txt", 8))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["classify", "{c}"], "give texts, a file, or -"),
        (["classify", "{c}", "a", "--file", "b.txt"], "give texts, a file, or -"),
        (["classify", "{c}", "--file", "absent.txt"], "absent.txt does not exist"),
        (["classify", "{t}", "a"], "is of class MarianMTModel, not a text classifier"),
        (["translate", "{c}", "a"], "not an encoder-decoder"),
        (["translate", "absent", "a"], "absent"),
        (["evaluate", "{c}", "--data", "x.jsonl", "--task", "clasification"], 'Did you mean "classification"?'),
        (["evaluate", "{c}", "--data", "x.jsonl", "--task", "classification"], "x.jsonl"),
        (["evaluate", "{c}", "--data", "x.jsonl", "--task", "classification", "--label", "1"], "--label"),
        (["evaluate", "{t}", "--data", "x.jsonl", "--task", "translation", "--languages", "en"], "--languages"),
    ],
)
def test_mistakes_are_one_line(
    ract: Ract, classifying: Path, translating: Path, arguments: list[str], says: str
) -> None:
    code, out, error = ract(*(one.format(c=classifying, t=translating) for one in arguments))
    lines = [line for line in error.splitlines() if line]
    assert code == 2 and out == "" and len(lines) == 1 and lines[0].startswith("ract: ") and says in lines[0]


def test_evaluate_shows_one_classifier_in_detail_and_several_in_rows(
    ract: Ract, classifying: Path, tmp_path: Path
) -> None:
    file = examples.write_rows(tmp_path / "rows.jsonl", examples.reviews(15, seed=8))
    given = ["--data", file, "--no-speed"]
    code, out, error = ract("evaluate", classifying, *given)
    assert code == 0, error
    assert all(word in out for word in ("accuracy", "macro-F1", "ECE", "precision", "true ↓ predicted →", "good"))
    found = json.loads(ract("evaluate", classifying, classifying, *given, "--json")[1])
    assert len(found) == 2 and sum(map(sum, found[0]["confusion"])) == 15 and found[0]["nats"] == found[1]["nats"]
    assert "predicted" not in ract("evaluate", classifying, classifying, *given)[1]


def test_evaluate_shows_a_translators_scores_and_signatures(ract: Ract, translating: Path, tmp_path: Path) -> None:
    files = examples.write_pairs(tmp_path, "some", examples.sentences(4))
    given = [word for file in files for word in ("--data", file)]
    code, out, error = ract("evaluate", translating, *given, "--no-speed", "--beams", 1)
    assert code == 0, error
    assert all(word in out for word in ("BLEU", "chrF", "tok:13a", "reference:", "loops"))
