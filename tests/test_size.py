"""How many tokens labelled texts and pairs come to, told from their first rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from ract.cost import derive_encoder_shape
from ract.data.corpus import SPLITS
from ract.data.examples import Examples
from ract.data.rows import labelled, pairs
from ract.data.sources import Meter
from ract.errors import BadInput
from ract.plan.graph import Origin
from ract.plan.schema import parse_plan
from ract.tree import size
from ract.tree.size import estimated_size
from tests.examples import classification, reviews, sentences, translation, write_pairs, write_rows

ROWS = reviews(500)


def tokens(*train: str, task: str = "classification", origin: Origin | None = None, **data: Any) -> int:
    languages = {"source_language": "en", "target_language": "de"} if task == "translation" else {}
    whole = {"valid_fraction": 0.0, "test_fraction": 0.0}
    table = {"task": task, "train": list(train), **languages, **whole, **data}
    plan = parse_plan({"name": "pico", "data": table, "tokenizer": {"vocab_size": 400}, "compact": {}})
    return estimated_size(plan, origin).tokens


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


@pytest.mark.parametrize("prepared", [classification, translation])
def test_the_estimate_is_what_a_build_counts(tmp_path: Path, prepared: Callable[[Path, int], Examples]) -> None:
    data = prepared(tmp_path, 500)
    sources = ["reviews.jsonl"] if data.task == "classification" else ["train.en", "train.de"]
    files = [str(tmp_path / name) for name in sources]
    counted = sum(int(data.lengths(split).sum()) for split in SPLITS)
    assert tokens(*files, task=data.task) == pytest.approx(counted, rel=0.03)  # it read the train split alone


def test_the_checkpoint_s_tokenizer_reads_the_texts(tmp_path: Path) -> None:
    letters = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate("ab?")}, unk_token="?"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.enable_truncation(3)
    letters.save(str(tmp_path / "tokenizer.json"))
    origin = Origin(str(tmp_path), "", derive_encoder_shape(300, 32, 2, num_labels=2))
    rows = write_rows(tmp_path / "a.jsonl", [{"text": "abab", "label": "x"}, {"text": "ab", "label": "y"}] * 10)
    assert tokens(rows, origin=origin) == 60
    (tmp_path / "tokenizer.json").unlink()  # as of a Marian checkpoint: by the size of the files
    assert tokens(rows, origin=origin) == Path(rows).stat().st_size // 2


def test_only_the_texts_count_whatever_the_format(tmp_path: Path) -> None:
    found = {name: tokens(source) for name, source in in_every_format(tmp_path).items()}
    assert max(found.values()) - min(found.values()) <= 1, found


def test_what_is_cut_does_not_count(tmp_path: Path) -> None:
    long = write_rows(tmp_path / "long.jsonl", [{"text": "word " * 1000, "label": "a"}] * 20)
    assert tokens(long, max_tokens=64) == 20 * 64
    assert tokens(long, max_tokens=64, valid_fraction=0.2, test_fraction=0.05) == 15 * 64


def test_the_first_rows_stand_for_the_others_of_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = write_rows(tmp_path / "short.jsonl", [{"text": "ok", "label": "a"}] * 300)
    long = write_rows(tmp_path / "long.jsonl", [{"text": "word " * 60, "label": "b"}] * 300)
    every = tokens(short, long)
    monkeypatch.setattr(size, "_ROWS", 10)
    assert tokens(short, long) == pytest.approx(every, abs=1)
    monkeypatch.setattr(size, "_CHARACTERS", 100)
    assert tokens(short, long) == pytest.approx(every, abs=1)


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
