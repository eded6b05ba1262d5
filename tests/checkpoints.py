"""Small checkpoints of plain tensors, written by the safetensors library, so that ours is never checked by itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ract.checkpoint.directory import ModelDirectory, open_model

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
CONFIG = {"model_type": "plain", "tie_word_embeddings": False}


def checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> ModelDirectory:
    """A model directory with *tensors*; its config names no architecture unless *config* does."""
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return open_model(folder)


def random_tensors(seed: int, dtype: str = "F32", scale: float = 1.0) -> dict[str, torch.Tensor]:
    """A matrix, a vector, a scalar and an empty tensor, drawn from *seed*."""
    generator = torch.Generator().manual_seed(seed)
    draw = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        for name, shape in {"a.weight": (7, 5), "b.bias": (5,), "c.scale": (), "d.none": (0, 3)}.items()
    }
    return {name: tensor.to(DTYPES[dtype]) for name, tensor in draw.items()}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in *folder*, as the safetensors library reads them."""
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor: −0 is not 0, and a NaN equals itself."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def fingerprint(folder: Path) -> dict[str, str]:
    """The hash of every file below *folder*."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
