"""Labelled texts and pairs of sentences, row by row: from JSONL, CSV, TSV, Parquet, ``hf:`` sets, aligned files."""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ract.data.sources import (
    HUB,
    JSONL_SUFFIXES,
    HubDataset,
    Meter,
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
    sources: Sequence[str], text_field: str = "text", label_field: str = "label", meter: Meter | None = None
) -> Iterator[tuple[str, str, str]]:
    """``(where, text, label)`` of every row of *sources*; *where* names the file and the line or row.

    *meter* is told how far the files have been read.

    A label is a string; numbers and booleans are written as such, the classes of a data set by their names.
    Raises BadInput: a format that has no rows, an absent column (naming those there are), an empty label, not UTF-8.
    """
    for source in sources:
        for where, row in _rows(source, 'a file with rows like {"text": "…", "label": 0}', meter):
            yield where, text_of(row, text_field, where), _label(row, label_field, where)


def pairs(
    sources: Sequence[str], source_field: str = "source", target_field: str = "target", meter: Meter | None = None
) -> Iterator[tuple[str, str, str]]:
    """``(where, source, target)`` of every pair of *sources*: rows with both fields, or plain text files, two and two,
    whose lines correspond (the first of the two is the source). *meter* is told how far the files have been read.

    Raises BadInput: a text file without its counterpart, two of unequal length (naming the line), an absent column.
    """
    for unit in read_together(sources):
        if len(unit) == 2:
            yield from _aligned(Path(unit[0]), Path(unit[1]), meter)
        else:
            for where, row in _rows(unit[0], "a file with rows of source and target", meter):
                yield where, text_of(row, source_field, where), text_of(row, target_field, where)


def read_together(sources: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The *sources* of pairs in turn: one that has rows alone, plain text files two and two.

    Raises BadInput for a text file without its counterpart.
    """
    waiting: str | None = None
    for source in sources:
        if _has_rows(source):
            yield (source,)
        elif waiting is None:
            waiting = source
        else:
            yield waiting, source
            waiting = None
    if waiting is not None:
        raise BadInput(
            f"{waiting} has no file beside it whose lines correspond",
            'Name plain text files two and two, the source first: ["a.en", "a.de"], or a file with rows of both',
        )


def _has_rows(source: str) -> bool:
    return source.startswith(HUB) or Path(source).suffix.lower() in JSONL_SUFFIXES | TABLE_SUFFIXES


def _rows(source: str, wanted: str, meter: Meter | None) -> Iterator[Row]:
    some = False
    for item in resolve(source):
        if isinstance(item, HubDataset):
            found: Iterator[Row] = ((f"{source} row {n}", row) for n, row in enumerate(item.records(), start=1))
        else:
            found = _file_rows(item, wanted, meter)
        for where, row in found:
            some = True
            yield where, row
    if not some:
        raise BadInput(f"{source} holds no rows", "Give data that is not empty")


def _file_rows(item: TextFile, wanted: str, meter: Meter | None) -> Iterator[Row]:
    suffix = item.path.suffix.lower()
    if item.is_jsonl:
        return ((f"{item.path} line {number}", row) for number, row in jsonl_rows(item.path, meter))
    if suffix in (".csv", ".tsv"):
        return _table_rows(item.path, "," if suffix == ".csv" else "\t", meter)
    if suffix == ".parquet":
        return _parquet_rows(item.path, meter)
    raise BadInput(
        f"{item.path} has no rows: {suffix or 'a file without an ending'} is not JSONL, CSV, TSV or Parquet",
        f"Give {wanted}",
    )


def _table_rows(path: Path, delimiter: str, meter: Meter | None) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be long
    with readable(str(path)), path.open("rb") as binary:
        reader = csv.DictReader(_decoded(binary, path, meter), delimiter=delimiter, restkey="")
        try:
            for row in reader:
                if row.get(""):
                    problem = f"{path} line {reader.line_num} has more columns than the first line names"
                    raise BadInput(problem, "Put texts that hold the delimiter in double quotes")
                yield f"{path} line {reader.line_num}", {key: value for key, value in row.items() if key}
        except csv.Error as error:
            raise BadInput(f"{path} line {reader.line_num}: {error}", "Write it as plain CSV again") from error


def _decoded(binary: Iterable[bytes], path: Path, meter: Meter | None) -> Iterator[str]:
    offset = 0
    for line in binary:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(path, offset + error.start) from error
        if meter is not None:
            meter.bytes += len(line)
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(line)


def _parquet_rows(path: Path, meter: Meter | None) -> Iterator[Row]:
    with needs_extra(f"Reading {path}", "train"):
        import pyarrow.parquet
    number = 0
    with readable(str(path)):
        try:
            file = pyarrow.parquet.ParquetFile(path)
            row_bytes = path.stat().st_size / max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    if meter is not None:
                        meter.bytes += row_bytes
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


def _aligned(source: Path, target: Path, meter: Meter | None) -> Iterator[tuple[str, str, str]]:
    lines = itertools.zip_longest(_lines(source, meter), _lines(target, meter))
    for number, (left, right) in enumerate(lines, start=1):
        if left is None or right is None:
            short = source if left is None else target
            raise BadInput(
                f"{source} and {target} do not have the same number of lines: {short} ends before line {number}",
                "Give files whose lines correspond",
            )
        yield f"{source} line {number}", left, right


def _lines(path: Path, meter: Meter | None) -> Iterator[str]:
    if not path.is_file():
        raise BadInput(f"{path} does not exist", "Give two files whose lines correspond")
    with readable(str(path)), path.open("rb") as file:
        for line in _decoded(file, path, meter):
            yield line.rstrip("\r\n")
