"""Tokens a second of a ReAct training node against Hugging Face ``Trainer`` with its default settings.

The same model, windows of text, batch and threads, in turn in one process. ``Trainer``'s defaults are fp32 and AdamW; a
node trains with bf16 where the processor has it natively, and Muon for the matrices. AdamW alone is measured
too, so that what comes from the precision and what from the optimizer can be told apart. Speed is tokens per second of
processor time: with one thread, what an idle machine gives, and hardly disturbed by a busy one.

    python benchmarks/training_speed.py            # writes benchmarks/results/training_speed.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from ract.cost import Shape, derive_shape
from ract.data.batches import training_batch
from ract.data.corpus import CorpusSpec
from ract.data.tokens import prepare
from ract.machine import freed_memory_kept
from ract.model.compact import new_compact_transformer
from ract.plan.defaults import default_train_spec
from ract.plan.graph import TrainSpec
from ract.train.device import has_native_bf16
from ract.train.node import TrainingRun
from ract.train.objectives import NextToken

RESULTS = Path(__file__).parent / "results" / "training_speed.json"
SHAPES = {"1.7 M": (2048, 128, 8), "4.0 M": (4096, 192, 8), "14 M": (4096, 384, 8)}


class Windows(torch.utils.data.Dataset):
    """The windows a node would read, as ``Trainer`` takes them."""

    def __init__(self, tokens: np.ndarray, block_size: int, count: int) -> None:
        rows = training_batch(tokens, step=0, batch_size=count, block_size=block_size, seed=0)
        self.rows = torch.from_numpy(rows[:, :-1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def node_speed(shape: Shape, spec: TrainSpec, tokens: np.ndarray) -> float:
    model = new_compact_transformer(shape, seed=0)
    run = TrainingRun(model, spec, NextToken(spec, tokens, None))
    with freed_memory_kept():
        run.step(0)  # the first step allocates
        started = time.process_time()
        for step in range(1, spec.steps):
            run.step(step)
        return (spec.steps - 1) * spec.batch_tokens / (time.process_time() - started)


def trainer_speed(shape: Shape, spec: TrainSpec, tokens: np.ndarray, **settings: Any) -> float:
    model = new_compact_transformer(shape, seed=0)
    rows = spec.batch_tokens // spec.block_size
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for steps in (1, spec.steps):  # the first run warms up
            arguments = TrainingArguments(
                folder, per_device_train_batch_size=rows, max_steps=steps, save_strategy="no", report_to="none",
                disable_tqdm=True, use_cpu=True, logging_strategy="no", **settings,
            )  # fmt: skip
            trainer = Trainer(model, arguments, train_dataset=Windows(tokens, spec.block_size, rows * steps))
            trainer.remove_callback(PrinterCallback)
            started = time.process_time()
            trainer.train()
            seconds.append(time.process_time() - started)
    return spec.steps * spec.batch_tokens / seconds[1]


def measure(name: str, tokens: np.ndarray, steps: int, rounds: int) -> list[dict[str, Any]]:
    shape = derive_shape(*SHAPES[name])
    spec = replace(default_train_spec(tokens=4096 * steps), patience=0)
    candidates = {
        "Trainer, defaults (fp32, AdamW)": lambda: trainer_speed(shape, spec, tokens),
        "Trainer, bf16": lambda: trainer_speed(shape, spec, tokens, bf16=True),
        "node, fp32, AdamW": lambda: node_speed(shape, replace(spec, precision="fp32", optimizer="adamw"), tokens),
        "node, bf16, AdamW": lambda: node_speed(shape, replace(spec, optimizer="adamw"), tokens),
        "node, defaults (bf16, Muon)": lambda: node_speed(shape, spec, tokens),
    }
    speeds: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    for _ in range(rounds):
        for candidate, run in candidates.items():  # in turn, so that a busy minute hits all alike
            speeds[candidate].append(run())
    baseline = speeds["Trainer, defaults (fp32, AdamW)"]
    return [
        {
            "model": name,
            "parameters": shape.parameters,
            "candidate": candidate,
            "tokens_per_processor_second": statistics.median(values),
            "ratio": statistics.median(v / b for v, b in zip(values, baseline, strict=True)),
            "rounds": values,
        }
        for candidate, values in speeds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="a build gives a node one thread on two cores")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            corpus = prepare(CorpusSpec(train=("stdlib",)), Path(folder), vocab_size=SHAPES[name][0])
            rows += measure(name, corpus.tokens["train"], options.steps, options.rounds)
            for row in rows[-5:]:
                figures = f"{row['tokens_per_processor_second']:8.0f} tokens/processor s {row['ratio']:6.2f}×"
                print(f"{row['model']:20} {row['candidate']:34} {figures}")
    RESULTS.parent.mkdir(exist_ok=True)
    record = {
        "threads": options.threads,
        "native_bf16": has_native_bf16(torch.device("cpu")),
        "torch": torch.__version__,
        "steps": options.steps,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
