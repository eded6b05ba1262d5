"""Sources become documents, and each document knows its split."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ract.data.corpus import SPLITS, CorpusSpec, documents, fingerprint, size_bytes, split_of
from ract.errors import BadInput

PARAGRAPH = "A line of a paragraph.\nAnd another line, 第二行。\n"


def write(path: Path, text: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def read(source: str, **options: str) -> list[str]:
    return list(documents([source], **options))


# Cutting files into documents


def test_prose_is_cut_at_blank_lines_into_documents_of_at_least_2048_bytes(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.txt", (PARAGRAPH + "\n") * 200))
    assert len(found) > 3
    assert all(len(text.encode()) >= 2040 and text.endswith("第二行。") for text in found[:-1])
    assert "\n\n".join(found) == "\n".join([PARAGRAPH] * 200).strip()


def test_prose_without_blank_lines_is_cut_at_line_ends(tmp_path: Path) -> None:
    text = PARAGRAPH * 600
    found = read(write(tmp_path / "a.md", text))
    assert len(found) > 2
    assert all(8192 <= len(piece.encode()) + 1 < 8192 + 64 for piece in found[:-1])
    assert "\n".join(found) + "\n" == text


def test_a_line_without_end_is_cut_between_characters(tmp_path: Path) -> None:
    text = "字" * 100_000
    found = read(write(tmp_path / "a.txt", text))
    assert len(found) > 3
    assert "".join(found) == text


def test_code_is_one_document_a_file(tmp_path: Path) -> None:
    code = "import os\n\n\n" + "x = 1\n\n" * 3000
    assert read(write(tmp_path / "a.py", code)) == [code]


def test_a_huge_file_is_cut_after_a_mebibyte(tmp_path: Path) -> None:
    code = "x = 123456789\n" * 200_000
    found = read(write(tmp_path / "a.py", code))
    assert [len(text) > 1 << 19 for text in found] == [True, True, True]
    assert "".join(found) == code


@pytest.mark.parametrize(
    ("document", "expected"),
    [("file", ["a\nb\n\nc\n"]), ("paragraph", ["a\nb", "c"]), ("line", ["a", "b", "c"]), ("auto", ["a\nb\n\nc"])],
)
def test_document_says_how_to_cut(tmp_path: Path, document: str, expected: list[str]) -> None:
    assert read(write(tmp_path / "a.txt", "a\nb\n\nc\n"), document=document) == expected


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", b"\xef\xbb\xbfa\r\nb\r\n\r\nc\r\n")
    assert read(source, document="paragraph") == ["a\r\nb", "c"]


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=400))
def test_no_text_is_lost_in_cutting(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    source = write(tmp_path_factory.mktemp("text") / "a.txt", text.removeprefix("\ufeff"))
    for document in ("paragraph", "line"):
        try:
            found = read(source, document=document)
        except BadInput:
            assert not text.removeprefix("\ufeff").strip()
            continue
        assert "".join("".join(found).split()) == "".join(text.removeprefix("\ufeff").split())


# Kinds of sources


def test_a_folder_is_read_below_and_in_order_without_hidden_or_binary_files(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.md", "a/.hidden/x.txt", ".git/x.txt", "picture.png", "empty.py"):
        write(tmp_path / name, "" if name == "empty.py" else name)
    assert read(str(tmp_path)) == ["b.py", "a/z.md"]


def test_globs_reach_into_folders(tmp_path: Path) -> None:
    for name in ("2.txt", "1.txt", "deep/er/3.txt", "4.md"):
        write(tmp_path / name, name)
    assert read(str(tmp_path / "*.txt")) == ["1.txt", "2.txt"]
    assert read(str(tmp_path / "**" / "*.txt")) == ["1.txt", "2.txt", "deep/er/3.txt"]


def test_a_row_of_jsonl_is_a_document(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.jsonl", '{"text": "one\\n\\nstill one"}\n\n{"text": "二", "label": 1}\n{"text": " "}\n'
    )
    assert read(source) == ["one\n\nstill one", "二"]
    assert read(write(tmp_path / "b.jsonl", '{"body": "x"}\n'), field="body") == ["x"]


def test_hugging_face_data_sets_from_local_files_and_folders(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for split in ("train", "test"):
        write(
            tmp_path / "set" / f"{split}.jsonl", "".join(json.dumps({"text": f"{split} {n}"}) + "\n" for n in range(3))
        )
    assert read(f"hf:json:{tmp_path}/set/tr*.jsonl") == ["train 0", "train 1", "train 2"]
    assert read(f"hf:{tmp_path}/set:test") == ["test 0", "test 1", "test 2"]
    assert fingerprint([f"hf:{tmp_path}/set:test"]) != fingerprint([f"hf:{tmp_path}/set"])
    for source in (f"hf:{tmp_path}/set:valid", f"hf:json:{tmp_path}/none.jsonl", f"hf:json:{tmp_path}/*.none", "hf:"):
        with pytest.raises(BadInput, match=r"set:valid|none|hf:"):
            read(source)
    with pytest.raises(BadInput, match=r'no text in the field "body".* fields: text'):
        read(f"hf:{tmp_path}/set", field="body")


def test_the_standard_library_is_there_without_its_tests() -> None:
    found = list(documents(["stdlib"]))
    assert len(found) > 300
    assert sum(map(len, found)) > 5_000_000
    assert any("class JSONDecoder" in text for text in found)
    assert not any("class TestCase(unittest" in text for text in found)
    assert found[:50] == list(itertools.islice(documents(["stdlib"]), 50))


# Errors name the file


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: str(d / "absent.txt"), "absent.txt does not exist"),
        (lambda d: str(d / "*.none"), r"\*.none matches no file"),
        (lambda d: write(d / "empty.txt", ""), "empty.txt holds no text"),
        (lambda d: write(d / "blank.txt", " \n\n \n"), "blank.txt holds no text"),
        (str, "holds no text files"),
        (lambda d: write(d / "a.txt", b"good\n" * 5000 + b"caf\xe9\n"), "a.txt is not UTF-8: byte 25003 .*iconv"),
        (lambda d: write(d / "a.txt", "x".encode("utf-16")), "a.txt is not UTF-8: byte 0"),
        (lambda d: write(d / "a.jsonl", '{"text": "x"}\n{"text": \n'), "a.jsonl line 2 is not valid JSON"),
        (lambda d: write(d / "a.jsonl", '["x"]\n'), "a.jsonl line 1 holds no JSON object"),
        (lambda d: write(d / "a.jsonl", '{"body": "x"}\n'), 'a.jsonl line 1 has no text in the field "text".*body'),
        (lambda d: write(d / "a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n'), "a.jsonl is not UTF-8: byte 24"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, make: Callable[[Path], str], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        read(make(tmp_path))
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="file permissions of POSIX")
@pytest.mark.parametrize("locked", ["file", "folder"])
def test_a_file_that_may_not_be_read(tmp_path: Path, locked: str) -> None:
    source = Path(write(tmp_path / "in" / "secret.txt", "x"))
    (source if locked == "file" else source.parent).chmod(0)
    user = os.geteuid()
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything
        with pytest.raises(BadInput, match=r"(secret.txt|in) cannot be read: permission denied"):
            read(str(source if locked == "file" else source.parent))
    finally:
        os.seteuid(user)
        source.parent.chmod(0o755)


def test_what_cannot_be_made_sense_of_as_a_spec() -> None:
    with pytest.raises(BadInput, match="no training source"):
        CorpusSpec(train=())
    with pytest.raises(BadInput, match="leave nothing to train on"):
        CorpusSpec(train=("stdlib",), valid_fraction=0.5, test_fraction=0.5)
    with pytest.raises(BadInput, match='no document "sentence"'):
        list(documents(["stdlib"], document="sentence"))  # type: ignore[arg-type]


# Splits and names


@given(st.text(max_size=50), st.floats(0, 0.4), st.floats(0, 0.4))
def test_the_split_follows_from_the_document_alone(text: str, valid: float, test: float) -> None:
    split = split_of(text, valid=valid, test=test)
    assert split in SPLITS
    assert split_of(text, valid=valid, test=test) == split
    if split == "valid":
        assert split_of(text, valid=min(0.5, valid + 0.1), test=test) == "valid"  # a larger share keeps what it had
    if split == "train":
        assert split_of(text, valid=0, test=0) == "train"


def test_splits_are_the_same_on_every_machine() -> None:
    # What `printf 'document 7' | sha256sum` begins with, modulo 10,000, below 500 and below 1,000.
    assert [n for n in range(60) if split_of(f"document {n}") == "valid"] == [12, 19, 25, 27, 47, 52]
    assert [n for n in range(60) if split_of(f"document {n}") == "test"] == [7, 14, 21, 39]


def test_shares_are_kept_and_splits_share_no_document(tmp_path: Path) -> None:
    lines = [f"line {n}" for n in range(4000)]
    spec = CorpusSpec(train=(write(tmp_path / "a.txt", "\n".join(lines * 2)),), document="line", test_fraction=0.1)
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, text in spec.documents():
        found[split].append(text)
    assert 0.04 < len(found["valid"]) / 8000 < 0.06
    assert 0.09 < len(found["test"]) / 8000 < 0.11
    assert sum(len(set(texts)) for texts in found.values()) == 4000
    assert list(spec.training_documents()) == found["train"]


def test_own_files_for_a_split_replace_its_share(tmp_path: Path) -> None:
    train = write(tmp_path / "a.txt", "\n".join(f"line {n}" for n in range(500)))
    own = write(tmp_path / "v.txt", "own\n")
    found = list(CorpusSpec(train=(train,), valid=(own,), document="line").documents())
    assert [text for split, text in found if split == "valid"] == ["own"]
    assert 0 < sum(split == "test" for split, _ in found) < 60


def test_the_fingerprint_is_of_what_files_hold(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.txt", "one"), write(tmp_path / "b" / "c.txt", "one")
    assert fingerprint([first]) == fingerprint([second])
    assert fingerprint([first]) != fingerprint([write(tmp_path / "a.py", "one")])  # another kind is cut otherwise
    before = fingerprint([first, second])
    write(tmp_path / "a.txt", "two")
    assert fingerprint([first, second]) != before
    assert fingerprint([first, second]) != fingerprint([second, first])
    assert size_bytes([first, second]) == 6


def test_memory_does_not_grow_with_a_file(tmp_path: Path) -> None:
    def peak(paragraphs: int) -> int:
        source = write(tmp_path / f"{paragraphs}.txt", (PARAGRAPH * 20 + "\n") * paragraphs)
        tracemalloc.start()
        for _ in documents([source]):
            pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(3000) < 1.5 * peak(300)


def test_reading_text_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, ract.data.corpus; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
