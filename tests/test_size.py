"""How many tokens labelled texts and pairs come to, told from their first rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from ract.data.rows import labelled, pairs
from ract.data.sources import Meter
from ract.errors import BadInput
from ract.plan.schema import parse_plan
from ract.tree import size
from ract.tree.size import estimated_size
from tests.examples import reviews, sentences, write_pairs, write_rows

ROWS = reviews(500)
TEXT_BYTES = sum(len(row["text"].encode()) for row in ROWS)


def tokens(*train: str, task: str = "classification", vocab_size: int = 4096, **data: Any) -> int:
    languages = {"source_language": "en", "target_language": "de"} if task == "translation" else {}
    whole = {"valid_fraction": 0.0, "test_fraction": 0.0}
    table = {"task": task, "train": list(train), **languages, **whole, **data}
    plan = parse_plan({"name": "pico", "data": table, "compact": {}})
    return estimated_size(plan, vocab_size).tokens


def in_every_format(folder: Path) -> dict[str, str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["label", "text"])
        writer.writeheader()
        writer.writerows(ROWS)
    (folder / "escaped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")
    noted = [{"text": row["text"], "label": row["label"], "note": "n" * 500} for row in ROWS]
    return {
        "JSONL": write_rows(folder / "a.jsonl", ROWS),
        "JSONL, escaped": str(folder / "escaped.jsonl"),
        "JSONL with another field": write_rows(folder / "noted.jsonl", noted),
        "CSV": str(folder / "a.csv"),
        "Parquet": str(folder / "a.parquet"),
    }


def test_only_the_texts_count_whatever_the_format(tmp_path: Path) -> None:
    expected = TEXT_BYTES / 3.3 + 2 * len(ROWS)
    for name, source in in_every_format(tmp_path).items():
        assert tokens(source) == pytest.approx(expected, abs=1), name
    assert tokens(str(tmp_path / "a.csv"), vocab_size=30_522) == pytest.approx(TEXT_BYTES / 4 + 2 * len(ROWS), abs=1)


def test_what_is_cut_does_not_count(tmp_path: Path) -> None:
    long = write_rows(tmp_path / "long.jsonl", [{"text": "word " * 1000, "label": "a"}] * 20)
    assert tokens(long, max_tokens=64) == 20 * 64
    assert tokens(long, max_tokens=64, valid_fraction=0.2, test_fraction=0.05) == 15 * 64


def test_the_first_rows_stand_for_the_others_of_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = write_rows(tmp_path / "short.jsonl", [{"text": "ok", "label": "a"}] * 300)
    long = write_rows(tmp_path / "long.jsonl", [{"text": "word " * 60, "label": "b"}] * 300)
    every = tokens(short, long)
    monkeypatch.setattr(size, "_ROWS", 10)
    assert tokens(short, long) == pytest.approx(every, rel=1e-3)


def test_both_sides_of_a_translation_count(tmp_path: Path) -> None:
    rows = sentences(200)
    expected = sum(len(text) for row in rows for text in row) / 3.3 + 2 * len(rows)
    assert tokens(*write_pairs(tmp_path, "a", rows), task="translation") == pytest.approx(expected, abs=1)


def test_a_wrong_column_is_said_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match='no label in the field "stars"'):
        tokens(write_rows(tmp_path / "a.jsonl", ROWS), label_field="stars")


def test_a_meter_comes_to_the_size_of_the_files(tmp_path: Path) -> None:
    for name, source in in_every_format(tmp_path).items():
        meter = Meter()
        list(labelled([source], meter=meter))
        assert meter.bytes == pytest.approx(Path(source).stat().st_size), name
    files, meter = write_pairs(tmp_path, "a", sentences(50)), Meter()
    list(pairs(files, meter=meter))
    assert meter.bytes == sum(Path(file).stat().st_size for file in files)
