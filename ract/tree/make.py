"""Make one node: train it or aggregate it, measure it, publish it. Runs inside a worker process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ract.checkpoint.crashpoints import crash_point
from ract.checkpoint.directory import publish, write_lineage
from ract.checkpoint.lineage import Cost, Lineage, Parent, content_hash, effective_leaves, read_lineage
from ract.data.tokenizer import copy_tokenizer
from ract.data.tokens import Corpus
from ract.locks import held
from ract.plan.graph import LEARN_BATCH_TOKENS, LEARN_STEPS, WEIGHTS_BLOCK
from ract.train.device import device_name
from ract.tree.data import open_data
from ract.tree.job import Job, made_from
from ract.tree.measure import measure
from ract.tree.start import base_model, starting_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ract.aggregate.weights import LearnedWeights
    from ract.data.examples import Examples
    from ract.train.node import TrainingRun

Report = Callable[[str, int, int], None]
_METRICS = ("bits_per_byte", "accuracy", "bleu")


def make(job: Job, report: Report) -> Path:
    """Carry out *job* and return the new model directory, with its lineage and its held-out measures.

    Raises what the training run and the aggregation raise; nothing is left at the job's path then.
    """
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.node.seed)
    data = open_data(Path(job.data))
    started = time.monotonic()
    work = Path(job.work)
    work.mkdir(parents=True, exist_ok=True)
    with held(work), publish(Path(job.out), force=True) as staging:
        make_it = _train if job.node.train else _aggregate if job.node.aggregate else _take
        lineage = make_it(job, data, staging, report)
        report("measure", 0, 1)
        below = job.total_flops - job.own_flops
        measured = measure(staging, job, data)
        cost = lineage.cost.model_copy(
            update={
                "seconds": time.monotonic() - started,
                "device": device_name(),
                "total_flops": below + lineage.cost.flops,
            }
        )
        if job.node.train is not None:  # a run that was resumed counts the seconds before the kill too
            cost = cost.model_copy(update={"seconds": lineage.cost.seconds})
        write_lineage(
            staging,
            lineage.model_copy(
                update={
                    "name": job.node.name,
                    "node": job.key,
                    "level": job.node.level,
                    "method": job.node.method,
                    "seed": job.node.seed,
                    "plan": job.node.content(),
                    "cost": cost,
                    "metrics_before": _metrics_of_parents(job),
                    "metrics_after": {**lineage.metrics_after, **measured},
                }
            ),
        )
        crash_point("node-written")
    shutil.rmtree(work, ignore_errors=True)
    return Path(job.out)


def train_along(job: Job) -> None:
    """Train beside the process that writes the model (``torchrun``): the same steps, nothing written."""
    torch.set_num_threads(job.threads)
    data = open_data(Path(job.data))
    _training_run(job, starting_model(job, data), data, None).run()


def _take(job: Job, data: Corpus | Examples, staging: Path, report: Report) -> Lineage:
    """A checkpoint as the model for the task: its weights, and a new head where it has none."""
    model = base_model(job, data)
    model.save_pretrained(staging)
    copy_tokenizer(data.tokenizer_dir, staging)
    return Lineage(method=job.node.method, parents=[Parent(name=Path(job.origin).name, content=job.node.source)])


def _train(job: Job, data: Corpus | Examples, staging: Path, report: Report) -> Lineage:
    spec = job.node.train
    assert spec is not None
    model = starting_model(job, data)

    def observed(what: str, done: int, total: int) -> None:
        report(what, done, total)
        if what == "train":
            crash_point(f"{job.node.method}-{done // spec.batch_tokens}")

    outcome = _training_run(job, model, data, observed).run()
    model.save_pretrained(staging)
    copy_tokenizer(data.tokenizer_dir, staging)
    flops = job.own_flops * outcome.tokens / spec.tokens  # less than planned where the run stopped early
    progress = outcome.progress
    return Lineage(
        method=job.node.method,
        parents=_parents(job),
        cost=Cost(tokens=outcome.tokens, flops=flops, seconds=progress.seconds),
        metrics_after={
            "history": progress.history,
            "best_step": progress.best_step,
            "stopped_early": progress.stopped_early,
        },
    )


def _training_run(job: Job, model: PreTrainedModel, data: Corpus | Examples, report: Report | None) -> TrainingRun:
    from ract.train.node import Teachers, TrainingRun
    from ract.train.objectives import build_objective

    assert job.node.train is not None
    return TrainingRun(
        model,
        job.node.train,
        build_objective(job.node.train, data),
        teachers=Teachers([_load(Path(t)) for t in job.teachers], _alpha_of(job)),
        work=Path(job.work),
        checkpoint_seconds=job.checkpoint_seconds,
        report=report,
    )


def _aggregate(job: Job, data: Corpus | Examples, staging: Path, report: Report) -> Lineage:
    from ract.aggregate.engine import execute
    from ract.aggregate.methods import method

    spec = job.node.aggregate
    assert spec is not None
    children = made_from(job) * spec.copies
    learned: LearnedWeights | None = None
    weights: Any = list(spec.weights) if isinstance(spec.weights, tuple) else spec.weights
    if spec.weights == "learned":
        learned = _learn(job, data, report)
        weights = learned.weights
    if weights == "uniform":
        weights = [1 / len(children)] * len(children)
    recipe = method(spec.method).recipe(children, weights)
    execute(recipe, children, staging, progress=report)
    metrics: dict[str, Any] = {}
    if learned is not None:
        metrics["weights"] = {
            "chosen": learned.chosen,
            "loss": learned.loss,
            "loss_uniform": learned.loss_uniform,
            "loss_children": learned.loss_children,
            "held_out_loss": learned.held_out_loss,
            "held_out_uniform": learned.held_out_uniform,
            "held_out_children": learned.held_out_children,
        }
    alpha = recipe.weights if isinstance(recipe.weights, list) and method(spec.method).linear else None
    return Lineage(
        method=spec.method,
        weights=recipe.weights,
        parents=_parents(job),
        leaves=effective_leaves([child.path for child in children], alpha) if alpha else {},
        cost=Cost(flops=job.own_flops),
        metrics_after=metrics,
    )


def _learn(job: Job, data: Corpus | Examples, report: Report) -> LearnedWeights:
    """α on one half of what the valid split gives; the other half, never looked at, says how it generalises."""
    from ract.aggregate.weights import learn

    spec = job.node.aggregate
    assert spec is not None

    def observed(what: str, done: int, total: int) -> None:
        report(what, done, total)
        crash_point(f"weights-{done}")

    return learn(
        [Path(job.parents[p]) for p in job.node.parents],
        _valid_batches(data, spec.weights_tokens, 0),
        _valid_batches(data, spec.weights_tokens, 1),
        per=spec.per,  # type: ignore[arg-type]
        steps=LEARN_STEPS,
        seed=job.node.seed,
        progress=observed,
    )


def _valid_batches(data: Corpus | Examples, limit_tokens: int, half: int) -> list[dict[str, torch.Tensor]]:
    """One half of about twice *limit_tokens* tokens from all over the valid split, for ``model(**batch).loss``."""
    if not isinstance(data, Corpus):
        from ract.data.example_batches import heldout_batches

        return heldout_batches(
            data, "valid", limit_tokens=limit_tokens, part=(half, 2), batch_tokens=LEARN_BATCH_TOKENS
        )
    from ract.data.batches import training_batch, window_count

    valid = data.tokens["valid"]
    block = min(WEIGHTS_BLOCK, (len(valid) - 1) // 2)  # two windows at least
    windows = min(window_count(valid, block) // 2, max(1, limit_tokens // block))
    rows = training_batch(valid, step=0, batch_size=windows, block_size=block, seed=0, shard=(half, 2))
    pieces = torch.from_numpy(rows).split(max(1, LEARN_BATCH_TOKENS // block))
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def _load(directory: Path) -> PreTrainedModel:
    from ract.aggregate.loaded import load

    return load(directory)


def _parents(job: Job) -> list[Parent]:
    return [
        Parent(name=name, content=content_hash(Path(job.parents[name])), path=Path(job.parents[name]).name)
        for name in job.node.parents
    ]


def _alpha_of(job: Job) -> list[float]:
    """The teachers' weights: α of the aggregation that is being healed; uniform where α differs by layer."""
    if len(job.teachers) < 2:
        return [1.0] * len(job.teachers)
    lineage = read_lineage(Path(job.parents[job.node.parents[0]]))
    if lineage is not None and isinstance(lineage.weights, list) and len(lineage.weights) == len(job.teachers):
        return lineage.weights
    return [1 / len(job.teachers)] * len(job.teachers)


def _metrics_of_parents(job: Job) -> dict[str, Any]:
    """The task's metric of each parent, for the line "before → after"."""
    found = {name: read_lineage(Path(path)) for name, path in job.parents.items()}
    return {
        name: {key: lineage.metrics_after[key] for key in _METRICS if key in lineage.metrics_after}
        for name, lineage in found.items()
        if lineage is not None
    }
