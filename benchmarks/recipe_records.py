"""Finished runs as they are published: a line of JSON each, with the loss on every test window.

What is published counts as done on any machine, so the matrix can be made in parts, here and there, and every interval
in the tables can be computed again from what is in the repository.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ract.checkpoint.directory import write_text

RESULTS = Path(__file__).parent / "results"
Record = Mapping[str, Any]


def folder_of(scale: float) -> Path:
    """Where the runs at *scale* times the budget are published."""
    return RESULTS / ("recipe-runs" if scale == 1 else f"recipe-runs-x{scale:g}")


def processor_seconds(record: Record) -> float:
    """What all nodes of a run took, in seconds of one processor."""
    return sum(node["processor_seconds"] for node in record["nodes"].values())


@cache
def published(folder: Path) -> dict[str, Record]:
    """Name → record of every run in *folder*."""
    lines = (line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines())
    return {record["name"]: record for record in map(json.loads, lines)}


def publish(records: Sequence[Record], folder: Path) -> None:
    """Add *records* to those in *folder*: a file a cell, a line a run, sorted by name."""
    known = {**published(folder), **{record["name"]: record for record in records}}
    folder.mkdir(parents=True, exist_ok=True)
    cells: dict[str, list[Record]] = {}
    for name in sorted(known):
        cells.setdefault("-".join(name.split("/")[:2]), []).append(known[name])
    for cell, own in cells.items():
        write_text(folder / f"{cell}.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in own))
    published.cache_clear()
