"""What a run is compared with beside its own nodes: for classification, TF-IDF with logistic regression."""

from __future__ import annotations

import json
from pathlib import Path

from ract.checkpoint.directory import write_text
from ract.data.tokens import Progress
from ract.tree.data import Prepared

FILE_NAME = "references.json"
TFIDF = "TF-IDF + logistic regression"


def write_references(prepared: Prepared, run: Path, test_examples: int, progress: Progress) -> None:
    """Write ``references.json`` into *run* (for classification), unless it is there for the same data already.

    The baseline learns from the same train texts, is tuned on the same valid texts and measured on the same test texts
    as the nodes.
    """
    if prepared.size.labels == 0:
        return
    from ract.data.examples import Examples
    from ract.evaluate.classification import tfidf_baseline

    data, file = prepared.data, run / FILE_NAME
    assert isinstance(data, Examples)
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("data") == data.digest:
        return
    split = "test" if data.count("test") else "valid"
    rows = {"train": data.rows("train"), "valid": data.rows("valid")} | {"measured": data.sample(split, test_examples)}
    train, valid, test = (
        ([row["text"] for row in rows[name]], [data.labels.index(row["label"]) for row in rows[name]])
        for name in ("train", "valid", "measured")
    )
    domains = [row["domain"] for row in rows["measured"]] if data.domains else None
    found = tfidf_baseline(train, valid, test, data.labels, domains=domains, progress=progress)
    value = {"data": data.digest, TFIDF: {"split": split, **found}}
    write_text(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
