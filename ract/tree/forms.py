"""Every useful node of a finished run, exported in several precisions: one tree, many sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ract.checkpoint.directory import read_json
from ract.data.example_batches import heldout_batches
from ract.data.examples import open_examples
from ract.data.tokens import Corpus, open_corpus
from ract.errors import BadInput
from ract.export.export import export_source
from ract.export.source import load_source
from ract.export.verify import Sample
from ract.runtime.choose import EXPORTS
from ract.runtime.manifest import Engine, Precision, is_exported, read_manifest

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int4")
_TOKENS = 16384  # of held-out data that every export is measured on
_BLOCK, _ROWS = 128, 8

Report = Callable[[str, int, int], None]


def export_tree(
    run: str | Path,
    out: str | Path | None = None,
    *,
    format: Engine = "onnx",
    precisions: Sequence[Precision] = PRECISIONS,
    report: Report | None = None,
) -> list[Path]:
    """Export the nodes of the finished *run* that are worth it into *out* (default: its own ``exports``), each in every
    one of *precisions*: those that no node of the same size or smaller beats on the run's held-out data.

    Each export is compared with its node, and both are measured on the run's validation data. What is there already is
    kept, so that a call that was cut short goes on. *report* is called as ``report(name, done, of all)``.
    Raises BadInput for a run that is not finished or whose prepared data are gone.
    """
    folder = Path(run)
    target = Path(out) if out is not None else folder / EXPORTS
    nodes = worthwhile(folder)
    data, batches = _held_out(folder)
    asked = [(node, precision) for node in nodes for precision in precisions]
    found = []
    for number, (node, precision) in enumerate(asked):
        place = target / f"{node['name']}-{format}-{precision}"
        found.append(place)
        if report:
            report(place.name, number, len(asked))
        if not _is_there(place, data):
            source = load_source(folder / node["path"])
            export_source(
                source,
                place,
                format,
                precision,
                Sample(batches, held_out=True),
                data=data,
                node=node["name"],
                force=True,
            )
    if report:
        report("export", len(asked), len(asked))
    return found


def worthwhile(run: Path) -> list[dict[str, Any]]:
    """The records of the nodes of *run*, the smallest first, that no node of the same size or smaller beats; its
    baseline, which stands beside the tree, is none of them.
    """
    file = run / "report.json"
    if not file.is_file():
        raise BadInput(
            f"{run} is no finished run (report.json)", "Finish it with ract build, or give a model directory"
        )
    record = read_json(file)
    measured = [n for n in record["nodes"] if n.get("quality") is not None and n["name"] != record.get("baseline")]
    lower_is_better = record.get("task", "language-modeling") == "language-modeling"
    ordered = sorted(measured, key=lambda n: (n["parameters"], n["quality"] if lower_is_better else -n["quality"]))
    found: list[dict[str, Any]] = []
    for node in ordered:
        better = (lambda a, b: a < b) if lower_is_better else (lambda a, b: a > b)
        if not found or better(node["quality"], found[-1]["quality"]):
            found.append(node)
    return found


def _held_out(run: Path) -> tuple[str, list[dict[str, torch.Tensor]]]:
    """The name of the run's validation data, and batches of it for ``model(**batch)``."""
    for folder in _prepared(run):
        if (folder / "corpus.json").is_file():
            return _windows(open_corpus(folder))
        examples = open_examples(folder)
        return examples.digest, heldout_batches(
            examples, "valid", limit_tokens=_TOKENS, part=(0, 1), batch_tokens=_BLOCK * _ROWS
        )
    raise BadInput(f"the prepared data of {run} are gone", "Run ract build again: it makes what is missing")


def _windows(corpus: Corpus) -> tuple[str, list[dict[str, torch.Tensor]]]:
    """Windows from all over the validation stream."""
    tokens = corpus.tokens["valid"]
    block = min(_BLOCK, len(tokens))
    starts = np.linspace(0, len(tokens) - block, max(1, min(_TOKENS, len(tokens)) // block)).astype(int)
    rows = torch.from_numpy(np.stack([tokens[start : start + block] for start in starts]).astype(np.int64))
    batches = [
        {"input_ids": part, "attention_mask": torch.ones_like(part), "labels": part} for part in rows.split(_ROWS)
    ]
    return corpus.digest, batches


def _prepared(run: Path) -> Iterator[Path]:
    """The folders of prepared data in *run*, the newest first."""
    found = [file for file in (run / "data").glob("*/*.json") if file.name in ("corpus.json", "examples.json")]
    for file in sorted(found, key=lambda one: -one.stat().st_mtime):
        if json.loads(file.read_text(encoding="utf-8")).get("digest"):
            yield file.parent


def _is_there(place: Path, data: str) -> bool:
    """Whether *place* holds a whole export that was measured on *data*."""
    if not is_exported(place):
        return False
    try:
        manifest = read_manifest(place)
    except BadInput:
        return False
    return manifest.held_out is not None and manifest.held_out.data == data
