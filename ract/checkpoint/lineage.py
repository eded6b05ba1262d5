"""``lineage.json``: where a model comes from, what it cost, and what is in its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ract.checkpoint.files import FileRecord, file_records
from ract.errors import BadInput

FILE_NAME = "lineage.json"
FORMAT = 1


class Strict(BaseModel):
    """Base of the records here: unknown keys are errors, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Parent(Strict):
    """One model that went into a node. *content* is :func:`content_hash` of its directory."""

    name: str
    content: str
    path: str = ""


class Cost(Strict):
    """What a node cost by itself (*tokens*, *flops*, *seconds* on *device*) and with all below it (*total_flops*)."""

    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    device: str = ""
    total_flops: float = 0.0


class Lineage(Strict):
    """The record beside the weights.

    *weights* is α: a list (one number per parent) or, where α differs by tensor group, ``{group: [numbers]}``.
    *leaves* maps the content hash of each leaf to its effective coefficient: nested merges multiplied out.
    """

    format: int = FORMAT
    ract: str = ""
    name: str = ""
    node: str = ""
    level: int = 0
    method: str
    weights: list[float] | dict[str, list[float]] | None = None
    parents: list[Parent] = Field(default_factory=list)
    leaves: dict[str, float] = Field(default_factory=dict)
    plan: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    cost: Cost = Cost()
    metrics_before: dict[str, Any] = Field(default_factory=dict)
    metrics_after: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, FileRecord] = Field(default_factory=dict)


def read_lineage(directory: Path) -> Lineage | None:
    """The lineage of a model directory, or None for a checkpoint that was not made by ReAct."""
    path = directory / FILE_NAME
    if not path.exists():
        return None
    try:
        return Lineage.model_validate_json(path.read_bytes())
    except (ValidationError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} is not a lineage record", "Delete it to use the directory as a plain checkpoint"
        ) from error


def content_hash(directory: Path) -> str:
    """One hash for what a model *is*: its files, whatever the folder is called and however long it took.

    Taken from the lineage's file records when sizes still agree, computed from the files otherwise.
    """
    lineage = read_lineage(directory)
    records = lineage.files if lineage else {}
    if not records or any(
        not (directory / name).is_file() or (directory / name).stat().st_size != record.size_bytes
        for name, record in records.items()
    ):
        records = file_records(directory, without=(FILE_NAME,))
    return digest({name: record.sha256 for name, record in records.items()})


def effective_leaves(parents: Sequence[Path], alpha: Sequence[float]) -> dict[str, float]:
    """The coefficient of every leaf in ``Σ αᵢ θᵢ``, looking through parents that are linear merges themselves.

    A parent whose lineage records no leaves (trained, stacked, or made elsewhere) is a leaf, named by its content hash.
    """
    total: dict[str, float] = {}
    for path, weight in zip(parents, alpha, strict=True):
        lineage = read_lineage(path)
        below = lineage.leaves if lineage and lineage.leaves else {content_hash(path): 1.0}
        for leaf, coefficient in below.items():
            total[leaf] = total.get(leaf, 0.0) + weight * coefficient
    return total


def digest(value: Any) -> str:
    """SHA-256 of *value* as canonical JSON: the one way things are named by content."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
