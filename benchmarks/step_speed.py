"""Time of a training step of a real plan: what ReAct's dropout, attention, loss and round shapes save on a CPU.

The leaf and the single model of a plan of ``benchmarks/applications``, on its own data: with torch's dropout,
``transformers``' attention, the loss of both and shapes as they come, with one of them replaced, with all, and with all
and nothing dropped. What is compared runs in turn in one process, a few steps each, on batches that no other has seen:
a shape that was there before costs less. Shown is the median step in processor time, which a busy machine disturbs
little.

    python -m benchmarks.step_speed --data FOLDER [--row chnsenticorp] [--threads 1 2]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.applications import plan_text
from ract.data.example_batches import IGNORED, Batch
from ract.machine import freed_memory_kept
from ract.plan.derive import build_graph
from ract.plan.schema import load_plan
from ract.plan.shapes import model_settings
from ract.train import node, objective
from ract.train.attention import PLAIN
from ract.train.node import TrainingRun
from ract.train.objectives import Translation, build_objective
from ract.tree.build import jobs_of
from ract.tree.data import open_data, prepare_data, with_vocabulary
from ract.tree.job import Job, node_directory, node_keys
from ract.tree.make import make
from ract.tree.start import starting_model

KINDS = {  # dropout, attention, loss, shapes
    "none": ("torch", "transformers", "torch", "given"),
    "dropout": ("ReAct", "transformers", "torch", "given"),
    "attention": ("torch", "ReAct", "torch", "given"),
    "loss": ("torch", "transformers", "ReAct", "given"),
    "shapes": ("torch", "transformers", "torch", "round"),
    "all": ("ReAct", "ReAct", "ReAct", "round"),
    "nothing dropped": ("none", "ReAct", "ReAct", "round"),
}


class NoDropout(TorchFunctionMode):
    """While it lasts, nothing is dropped."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is F.dropout else func(*args, **(kwargs or {}))


def jobs(row: str, data: Path, folder: Path) -> dict[str, Job]:
    """The first leaf of *row* (the file of a plan, or a row's name) and its single model, with what they start from."""
    text = Path(row).read_text(encoding="utf-8") if row.endswith(".toml") else plan_text(row, 0, data)
    (folder / "plan.toml").write_text(text, encoding="utf-8")
    plan = load_plan(folder / "plan.toml")
    prepared = prepare_data(plan, folder)
    plan = with_vocabulary(plan, prepared.data.vocab_size)
    graph = build_graph(plan, prepared.size, prepared.origin)
    keys = node_keys(graph, prepared.data.digest, model_settings(plan))
    directories = {one.name: node_directory(folder, one.name, keys[one.name]) for one in graph}
    found = jobs_of(plan, folder, graph, keys, directories, prepared, 1)
    leaf = next(one for one in graph if one.train is not None)
    for parent in graph.ancestry(leaf.name) - {leaf.name}:
        make(found[parent], lambda what, done, total: None)
    return {name: found[name] for name in (leaf.name, graph.baseline)}


def torchs_loss(logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """``summed_cross_entropy`` as torch computes it: of all logits at once, in fp32."""
    return F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=smoothing)


def whole(_: Translation, model: nn.Module, batch: Batch) -> torch.Tensor:
    """The logits of a translator at all positions, then at the targets."""
    texts = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    logits: torch.Tensor = model(**texts, use_cache=False).logits
    return logits[batch["labels"] != IGNORED]


class Run(TrainingRun):
    """A run with *dropout*, *attention*, *loss* and *shapes* of ``torch`` and ``transformers`` or of ReAct."""

    def __init__(self, job: Job, dropout: str, attention: str, loss: str, shapes: str) -> None:
        assert job.node.train is not None
        data = open_data(Path(job.data))
        super().__init__(starting_model(job, data), job.node.train, build_objective(job.node.train, data))
        self.dropout, self.loss, self.shapes = dropout, loss, shapes
        if attention == "transformers" and self.plain.config._attn_implementation == PLAIN:
            self.plain.set_attn_implementation("eager")
        self.plain.train()

    def step(self, step: int) -> float:
        """With torch's loss a translator gives all logits, and computes a loss of its own that nobody reads."""
        with ExitStack() as stack:
            if self.loss == "torch":
                stack.enter_context(patch.object(objective, "summed_cross_entropy", torchs_loss))
                stack.enter_context(patch.object(Translation, "logits", whole))
            if self.shapes == "given":
                stack.enter_context(patch.object(node, "RoundedRows", nullcontext))
            return super().step(step)

    def _drawing(self, step: int) -> AbstractContextManager[object]:
        if self.dropout == "none":
            return NoDropout()
        return super()._drawing(step) if self.dropout == "ReAct" else nullcontext()


def step_ms(run: TrainingRun, step: int) -> float:
    """Milliseconds of processor time of that step."""
    begin = time.process_time()
    run.step(step)
    return (time.process_time() - begin) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with the data sets")
    parser.add_argument("--row", default="chnsenticorp", help="a plan of benchmarks/applications, or a plan's file")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, job in jobs(options.row, options.data, Path(folder)).items():
            for threads in options.threads:
                torch.set_num_threads(threads)
                runs = {kind: Run(job, *settings) for kind, settings in KINDS.items()}
                times: dict[str, list[float]] = {kind: [] for kind in runs}
                next_step = itertools.count()
                with freed_memory_kept() as hand_back:
                    for number in range(-1, options.rounds):
                        for kind, run in runs.items():
                            took = [step_ms(run, next(next_step)) for _ in range(options.steps)]
                            times[kind] += took if number >= 0 else []
                        hand_back()
                found = {kind: statistics.median(took) for kind, took in times.items()}
                shown = ", ".join(f"{kind} {ms:.0f}" for kind, ms in found.items())
                print(f"{name}, {threads} thread(s), ms: {shown}; {found['none'] / found['all']:.2f}×", flush=True)


if __name__ == "__main__":
    main()
