"""Rows of every format read alike; what is wrong with a file is said with its line and its remedy."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ract.data.rows import labelled, pairs
from ract.errors import BadInput
from tests.examples import write_rows

ROWS = [
    {"text": "plain", "label": "a"},
    {"text": 'comma, "quotes"\nand a second line', "label": "b"},
    {"text": "emoji 🙂 and עברית العربية 中文", "label": "a"},
    {"text": "x" * 100_000, "label": "b"},
]


def table(path: Path, delimiter: str) -> str:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    return str(path)


def parquet(path: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return str(path)


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    sources = [
        write_rows(tmp_path / "a.jsonl", ROWS),
        table(tmp_path / "a.csv", ","),
        table(tmp_path / "a.tsv", "\t"),
        parquet(tmp_path / "a.parquet"),
        f"hf:json:{tmp_path / 'a.jsonl'}",
    ]
    for source in sources:
        assert [(text, label) for _, text, label in labelled([source])] == [(r["text"], r["label"]) for r in ROWS], (
            source
        )


def test_labels_of_any_kind_are_names(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"t": "x", "y": 1}\n{"t": "x", "y": true}\n{"t": "x", "y": 2.0}\n{"t": "x", "y": " z "}\n')
    assert [label for _, _, label in labelled([str(path)], "t", "y")] == ["1", "True", "2", "z"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"hello", "a.txt has no rows"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b'{"text": "x", "stars": 1}\n', 'line 1 has no label in the field "label".*text, stars'),
        ("a.jsonl", b'{"label": "x"}\n', 'line 1 has no text in the field "text"'),
        ("a.jsonl", b'{"text": "x", "label": ""}\n', "line 1 has an empty label"),
        ("a.jsonl", b'{"text": "x", "label": [1]}\n', "line 1 has an empty label"),
        ("a.jsonl", b'{"text": "half \\ud83d", "label": 1}\n', "line 1 has half a character"),
        ("a.jsonl", b'{"text": "x", "label": "\\udc00"}\n', 'half a character .* in the field "label"'),
        ("a.jsonl", b"[" * 100_000, "line 1 is not valid JSON"),
        ("a.jsonl", '{"text": "x", "label": 1}'.encode("utf-16"), "a.jsonl is not UTF-8: byte 0"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": "\xe9t\xe9", "label": 1}\n', "is not UTF-8: byte 36"),
        ("a.csv", b"text,label\nok,a\n\xff\xfe,b\n", "a.csv is not UTF-8: byte 16"),
        ("a.csv", b"text;label\nok;a\n", 'line 2 has no text in the field "text"'),
        ("a.csv", b"text,label\none,two,a\n", "line 2 has more columns"),
        ("a.parquet", b"not parquet at all", "not a readable Parquet"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=says):
        list(labelled([str(tmp_path / name)]))


def test_a_byte_order_mark_is_no_part_of_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "x", "label": 1}\n', encoding="utf-8")
    assert [(text, label) for _, text, label in labelled([str(path)])] == [("x", "1")]


def test_aligned_files_and_rows_of_pairs_are_one(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("one\n\nthree\n", encoding="utf-8")
    (tmp_path / "a.zh").write_bytes("一\r\n二\r\n三\r\n".encode())
    rows = write_rows(tmp_path / "b.jsonl", [{"source": "four", "target": "四"}])
    found = [(s, t) for _, s, t in pairs([str(tmp_path / "a.en"), str(tmp_path / "a.zh"), rows])]
    assert found == [("one", "一"), ("", "二"), ("three", "三"), ("four", "四")]


def test_only_a_line_feed_ends_a_line_of_aligned_files(tmp_path: Path) -> None:
    odd = ["next\x85line", "line\u2028separator", "שלום 🙂", "y" * 100_000]
    for language in ("en", "de"):
        (tmp_path / f"a.{language}").write_bytes("\n".join(odd).encode())
    found = [(s, t) for _, s, t in pairs([str(tmp_path / "a.en"), str(tmp_path / "a.de")])]
    assert found == [(line, line) for line in odd]
    (tmp_path / "a.de").write_bytes(b"ok\nna\xefve\n")
    with pytest.raises(BadInput, match=r"a.de is not UTF-8: byte 5"):
        list(pairs([str(tmp_path / "a.en"), str(tmp_path / "a.de")]))


def test_unequal_files_name_the_line_and_a_lone_file_its_lack(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("one\ntwo\n")
    (tmp_path / "a.de").write_text("eins\n")
    with pytest.raises(BadInput, match=r"same number of lines: .*a.de ends before line 2"):
        list(pairs([str(tmp_path / "a.en"), str(tmp_path / "a.de")]))
    with pytest.raises(BadInput, match=r"a.en has no file beside it"):
        list(pairs([str(tmp_path / "a.en")]))
