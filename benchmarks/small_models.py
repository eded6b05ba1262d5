"""What the benchmarks of aggregation share: the data folder, a tokenizer for it, and one short training run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ract.data.corpus import documents
from ract.data.tokenizer import TextEncoder, copy_tokenizer, train_tokenizer
from ract.plan.graph import TrainSpec
from ract.train.node import TrainingRun
from ract.train.objectives import NextToken

RESULTS = Path(__file__).parent / "results"


def data_folder() -> Path:
    folder = Path(os.environ.get("RACT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"no real data at {folder}; set RACT_DATA")
    return folder


def make_tokenizer(files: Iterable[Path], vocab_size: int, directory: Path) -> Path:
    train_tokenizer((text for file in files for text in documents([str(file)])), vocab_size, directory)
    return directory


def tokens_of(tokenizer: Path, file: Path) -> np.ndarray:
    """The stream of tokens of *file*, documents separated."""
    encoder = TextEncoder(tokenizer)
    stream = [encoder.separator]
    for text in documents([str(file)]):
        stream += [*encoder.encode([text])[0], encoder.separator]
    return np.array(stream, dtype=np.int64)


def train(model: PreTrainedModel, tokens: np.ndarray, count: int, *, lr: float, seed: int = 0, **changes: Any) -> None:
    """Train *model* in place on *count* tokens drawn from *tokens*: 2,048 a step, AdamW, warm-up–stable–decay."""
    fields: dict[str, Any] = {
        "tokens": count // 2048 * 2048, "batch_tokens": 2048, "micro_batch_tokens": 2048, "block_size": 128,
        "lr": lr, "warmup": 0.05, "decay": 0.3, "optimizer": "adamw", "weight_decay": 0.1, "l2_penalty": 0.0,
        "grad_clip": 1.0, "ema": 0.0, "patience": 0, "evaluations": 1, "precision": "auto", "order_seed": seed,
    }  # fmt: skip
    spec = TrainSpec(**(fields | changes))
    TrainingRun(model, spec, NextToken(spec, tokens, None)).run()
    model.eval()


def save(model: PreTrainedModel, path: Path, tokenizer: Path) -> Path:
    """*model* with the tokenizer of the directory *tokenizer*, as a model directory."""
    model.save_pretrained(path)
    copy_tokenizer(tokenizer, path)
    return path
