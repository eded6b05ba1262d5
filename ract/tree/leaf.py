"""``ract train``: one leaf by itself. ``torchrun`` makes it data-parallel."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ract.errors import BadInput
from ract.plan.derive import build_graph
from ract.plan.schema import BaselineTable, load_plan
from ract.tree.build import prepare_corpus, with_vocabulary
from ract.tree.job import Job, node_keys
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
    corpus = prepare_corpus(table, work, report)
    table = with_vocabulary(table, corpus.vocab_size)
    graph = build_graph(table, len(corpus.tokens["train"]))
    check_memory(graph)
    key = node_keys(graph, corpus.digest, table.compact.max_position_embeddings)[graph.final]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    job = Job(
        node=graph[graph.final],
        key=key,
        corpus=str(corpus.path),
        out=str(target),
        work=str(work / key[:12]),
        threads=threads or max(1, processors() // processes),
        max_position_embeddings=table.compact.max_position_embeddings,
        test_tokens=table.data.test_tokens,
        own_flops=graph.own_flops(graph.final),
        total_flops=graph.total_flops(graph.final),
    )
    if int(os.environ.get("RANK", "0")) > 0:
        train_along(job)
        return target
    make(job, report or (lambda what, done, total: None))
    shutil.rmtree(work, ignore_errors=True)
    return target
