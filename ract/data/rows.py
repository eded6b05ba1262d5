"""Labelled texts and pairs of sentences, row by row: from JSONL, CSV, TSV, Parquet, ``hf:`` sets, aligned files."""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ract.data.sources import (
    HUB,
    JSONL_SUFFIXES,
    HubDataset,
    TextFile,
    jsonl_rows,
    not_utf8,
    readable,
    resolve,
    text_of,
    whole,
)
from ract.errors import BadInput, needs_extra

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
Row = tuple[str, dict[str, Any]]


def labelled(
    sources: Sequence[str], text_field: str = "text", label_field: str = "label"
) -> Iterator[tuple[str, str, str]]:
    """``(where, text, label)`` of every row of *sources*; *where* names the file and the line or row.

    A label is a string; numbers and booleans are written as such, the classes of a data set by their names.
    Raises BadInput: a format that has no rows, an absent column (naming those there are), an empty label, not UTF-8.
    """
    for source in sources:
        for where, row in _rows(source, 'a file with rows like {"text": "…", "label": 0}'):
            yield where, text_of(row, text_field, where), _label(row, label_field, where)


def pairs(
    sources: Sequence[str], source_field: str = "source", target_field: str = "target"
) -> Iterator[tuple[str, str, str]]:
    """``(where, source, target)`` of every pair of *sources*: rows with both fields, or plain text files, two and two,
    whose lines correspond (the first of the two is the source).

    Raises BadInput: a text file without its counterpart, two of unequal length (naming the line), an absent column.
    """
    waiting: str | None = None
    for source in sources:
        if _has_rows(source):
            for where, row in _rows(source, "a file with rows of source and target"):
                yield where, text_of(row, source_field, where), text_of(row, target_field, where)
        elif waiting is None:
            waiting = source
        else:
            yield from _aligned(Path(waiting), Path(source))
            waiting = None
    if waiting is not None:
        raise BadInput(
            f"{waiting} has no file beside it whose lines correspond",
            'Name plain text files two and two, the source first: ["a.en", "a.de"], or a file with rows of both',
        )


def _has_rows(source: str) -> bool:
    return source.startswith(HUB) or Path(source).suffix.lower() in JSONL_SUFFIXES | TABLE_SUFFIXES


def _rows(source: str, wanted: str) -> Iterator[Row]:
    some = False
    for item in resolve(source):
        if isinstance(item, HubDataset):
            found: Iterator[Row] = ((f"{source} row {n}", row) for n, row in enumerate(item.records(), start=1))
        else:
            found = _file_rows(item, wanted)
        for where, row in found:
            some = True
            yield where, row
    if not some:
        raise BadInput(f"{source} holds no rows", "Give data that is not empty")


def _file_rows(item: TextFile, wanted: str) -> Iterator[Row]:
    suffix = item.path.suffix.lower()
    if item.is_jsonl:
        return ((f"{item.path} line {number}", row) for number, row in jsonl_rows(item.path))
    if suffix in (".csv", ".tsv"):
        return _table_rows(item.path, "," if suffix == ".csv" else "\t")
    if suffix == ".parquet":
        return _parquet_rows(item.path)
    raise BadInput(
        f"{item.path} has no rows: {suffix or 'a file without an ending'} is not JSONL, CSV, TSV or Parquet",
        f"Give {wanted}",
    )


def _table_rows(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be long
    with readable(str(path)), path.open("rb") as binary:
        reader = csv.DictReader(_decoded(binary, path), delimiter=delimiter, restkey="")
        try:
            for row in reader:
                if row.get(""):
                    problem = f"{path} line {reader.line_num} has more columns than the first line names"
                    raise BadInput(problem, "Put texts that hold the delimiter in double quotes")
                yield f"{path} line {reader.line_num}", {key: value for key, value in row.items() if key}
        except csv.Error as error:
            raise BadInput(f"{path} line {reader.line_num}: {error}", "Write it as plain CSV again") from error


def _decoded(binary: Any, path: Path) -> Iterator[str]:
    offset = 0
    for line in binary:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(path, offset + error.start) from error
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(line)


def _parquet_rows(path: Path) -> Iterator[Row]:
    with needs_extra(f"Reading {path}", "train"):
        import pyarrow.parquet
    number = 0
    with readable(str(path)):
        try:
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
        except pyarrow.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"{path} is not a readable Parquet file ({reason})", "Write it again") from error


def _label(row: dict[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise BadInput(
            f'{where} has no label in the field "{field}"', f"Name one of its fields: {', '.join(map(str, row))}"
        )
    value = row[field]
    text = value if isinstance(value, str) else "" if value is None or isinstance(value, (dict, list)) else str(value)
    if isinstance(value, float) and value.is_integer():
        text = str(int(value))
    if not text.strip():
        raise BadInput(f'{where} has an empty label in the field "{field}"', "Give every text a class, or leave it out")
    return whole(text.strip(), field, where)


def _aligned(source: Path, target: Path) -> Iterator[tuple[str, str, str]]:
    for number, (left, right) in enumerate(itertools.zip_longest(_lines(source), _lines(target)), start=1):
        if left is None or right is None:
            short = source if left is None else target
            raise BadInput(
                f"{source} and {target} do not have the same number of lines: {short} ends before line {number}",
                "Give files whose lines correspond",
            )
        yield f"{source} line {number}", left, right


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise BadInput(f"{path} does not exist", "Give two files whose lines correspond")
    offset = 0
    with readable(str(path)), path.open("rb") as file:
        for line in file:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(path, offset + error.start) from error
            yield (text.removeprefix("\ufeff") if offset == 0 else text).rstrip("\r\n")
            offset += len(line)
