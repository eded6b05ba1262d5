"""Mid-run checkpoints that a kill cannot spoil.

A checkpoint is one safetensors file, then a manifest with its size and SHA-256. Only a manifest whose file agrees
counts; an older valid checkpoint is kept until a newer one is complete.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ract.checkpoint.directory import sync_directory, write_text
from ract.checkpoint.files import sha256_file
from ract.errors import disk_errors

_NAME = re.compile(r"^checkpoint-(\d+)\.json$")


@dataclass
class Progress:
    """Where a run stands. *history* rows: step, tokens, train loss, valid loss (nats per token), seconds."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_step: int = 0
    stopped_early: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(folder: Path, progress: Progress, tensors: dict[str, torch.Tensor]) -> None:
    """Write the checkpoint of ``progress.step`` into *folder*, then drop all but the two newest."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"checkpoint-{progress.step:08d}.safetensors"
    aside = file.with_suffix(".partial")
    with disk_errors(folder):
        try:
            save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, aside)
            with aside.open("rb") as handle:
                os.fsync(handle.fileno())
            manifest = {"size_bytes": aside.stat().st_size, "sha256": sha256_file(aside), "progress": asdict(progress)}
            aside.replace(file)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        write_text(file.with_suffix(".json"), json.dumps(manifest))
        sync_directory(folder)
    for step in _steps(folder)[2:]:
        for suffix in (".json", ".safetensors"):
            (folder / f"checkpoint-{step:08d}").with_suffix(suffix).unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[Progress, dict[str, torch.Tensor]] | None:
    """The newest valid checkpoint of *folder*; None where there is none (a damaged one is passed over)."""
    for step in _steps(folder):
        manifest_file = folder / f"checkpoint-{step:08d}.json"
        file = manifest_file.with_suffix(".safetensors")
        try:
            manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
            if file.stat().st_size == manifest["size_bytes"] and sha256_file(file) == manifest["sha256"]:
                return Progress(**manifest["progress"]), load_file(file)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            continue
    return None


def _steps(folder: Path) -> list[int]:
    """Steps that have a manifest, newest first. Leftovers of a write that was killed are removed on the way."""
    if not folder.is_dir():
        return []
    for leftover in [*folder.glob("*.partial"), *folder.glob(".tmp*"), *folder.glob(".checkpoint-*")]:
        leftover.unlink(missing_ok=True)
    return sorted((int(m[1]) for p in folder.iterdir() if (m := _NAME.match(p.name))), reverse=True)
