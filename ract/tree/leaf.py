"""``ract train``: one leaf by itself. ``torchrun`` makes it data-parallel."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ract.errors import BadInput
from ract.plan.derive import build_graph
from ract.plan.schema import BaselineTable, load_plan
from ract.plan.shapes import model_settings
from ract.tree.build import jobs_of
from ract.tree.data import prepare_data, with_vocabulary
from ract.tree.job import Job, is_finished, node_directory, node_keys
from ract.tree.machine import check_memory, processors

Report = Callable[[str, int, int], None]


def train(
    plan: str | Path, out: str | Path, *, force: bool = False, threads: int | None = None, report: Report | None = None
) -> Path:
    """Train the compact transformer of *plan*, its learning rate decaying at the end, into the model directory *out*.

    Checkpoints lie in ``.<out>.work`` beside *out* until the model is complete; after a kill the same command goes on
    from them. Under ``torchrun`` every process takes a share of each batch and the first one writes.
    Raises BadInput for a wrong plan or an *out* that exists (without *force*); NonFiniteLoss when training diverges.
    """
    from ract.tree.make import make, train_along

    target = Path(out)
    if target.exists() and not force:
        raise BadInput(f"{target} exists already", "Choose another output folder or give --force to replace it")
    table = load_plan(plan).model_copy(update={"level": [], "tree": None, "baseline": BaselineTable(enabled=False)})
    work = target.absolute().parent / f".{target.name}.work"
    work.mkdir(parents=True, exist_ok=True)
    prepared = prepare_data(table, work, report)
    table = with_vocabulary(table, prepared.data.vocab_size)
    graph = build_graph(table, prepared.size, prepared.origin)
    check_memory(graph)
    keys = node_keys(graph, prepared.data.digest, model_settings(table))
    directories = {node.name: node_directory(work, node.name, keys[node.name]) for node in graph}
    directories[graph.final] = target
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    own = threads or max(1, processors() // processes)
    along = int(os.environ.get("RANK", "0")) > 0
    for name, job in jobs_of(table, work, graph, keys, directories, prepared, 1).items():
        if name != graph.final and is_finished(directories[name], keys[name]):
            continue
        if not along:
            make(replace(job, threads=own), report or (lambda what, done, total: None))
        elif job.node.train is not None:
            _wait_for(job)
            train_along(replace(job, threads=own))
    if not along:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _wait_for(job: Job) -> None:
    """Until the first process has written the parents of *job* (when it fails, ``torchrun`` stops this one too)."""
    while not all(Path(path).is_dir() for path in job.parents.values()):
        time.sleep(0.2)
