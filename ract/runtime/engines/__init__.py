"""What executes a model: one small interface, one module for each engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ract.errors import needs_extra
from ract.runtime.manifest import is_exported


def open_engine(directory: Path, kind: str, verb: str, **options: Any) -> Any:
    """The engine for *directory*: that of its format for an exported model, else torch.

    *kind* is "Decoder", "Classifier" or "Translator", *verb* the command that asks, *options* are the engine's own.
    Raises MissingExtra where torch is needed and not installed, BadInput as the engines do.
    """
    if is_exported(directory):
        from ract.runtime.engines import text

        return getattr(text, f"Exported{kind}")(directory, **options)
    with needs_extra(f"ract {verb} on a model directory", "train"):
        from ract.runtime.engines import torch
    return getattr(torch, f"Torch{kind}")(directory, **options)
