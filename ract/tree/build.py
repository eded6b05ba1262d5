"""``ract build``: make every node of a plan that is not there yet, several at a time, and record the run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ract.checkpoint.directory import recover, write_text
from ract.errors import disk_errors
from ract.locks import held
from ract.plan.derive import build_graph
from ract.plan.graph import Graph
from ract.plan.schema import Plan, load_plan
from ract.plan.shapes import model_settings
from ract.tree.data import Prepared, prepare_data, remarks, with_vocabulary
from ract.tree.job import CHECKPOINT_SECONDS, Job, is_finished, node_directory, node_keys
from ract.tree.local import Executor, LocalExecutor
from ract.tree.references import write_references


class Watcher:
    """Hears how a build goes. Every method may be overridden; by default nothing is shown."""

    def data(self, what: str, done: int, total: int) -> None:
        """The corpus is being prepared: *done* of *total* bytes."""

    def note(self, text: str) -> None:
        """Something about the data that is worth knowing, in one sentence."""

    def started(self, graph: Graph, to_do: Mapping[str, float], finished: int) -> None:
        """*to_do* maps the nodes that will be made to their FLOPs; *finished* nodes exist already."""

    def node_started(self, name: str) -> None:
        """A worker has begun the node *name*."""

    def node_progress(self, name: str, what: str, done: int, total: int) -> None:
        """The node *name* is at *done* of *total* (tokens, where *what* is "train")."""

    def node_finished(self, name: str) -> None:
        """The node *name* is in its place."""

    def reporting(self) -> None:
        """The models are made; samples and figures follow."""


@dataclass(frozen=True)
class Run:
    """A finished build: the graph, and where each of its nodes lies."""

    path: Path
    plan: Plan
    graph: Graph
    directories: dict[str, Path]

    @property
    def final(self) -> Path:
        """The model directory of the last level."""
        return self.directories[self.graph.final]


def build(
    plan: str | Path,
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    watcher: Watcher | None = None,
    executor: Callable[[int, Path], Executor] = LocalExecutor,
) -> Run:
    """Run the plan file *plan* in the folder *out* (default ``runs/<name>``), from where it stopped if it did.

    *workers* nodes are made at a time (default: one per processor, fewer where memory is short). Nodes that exist under
    the same content key are kept, whatever else in the plan has changed. A training run is saved every
    *checkpoint_seconds*.

    Raises BadInput for a wrong plan or wrong data, RactError when a node fails; what was finished before stays.
    """
    from ract.tree.machine import worker_count

    table = load_plan(plan)
    run = Path(out) if out is not None else Path("runs") / table.name
    watcher = watcher or Watcher()
    with disk_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        with held(run):
            prepared = prepare_data(table, run, watcher.data)
            for text in remarks(prepared):
                watcher.note(text)
            table = with_vocabulary(table, prepared.data.vocab_size)
            graph = build_graph(table, prepared.size, prepared.origin)
            keys = node_keys(graph, prepared.data.digest, model_settings(table))
            directories = {node.name: node_directory(run, node.name, keys[node.name]) for node in graph}
            count = worker_count(graph, workers)
            jobs = {
                name: replace(job, checkpoint_seconds=checkpoint_seconds)
                for name, job in jobs_of(table, run, graph, keys, directories, prepared, count).items()
            }
            recover(run / "nodes")
            missing = [name for name in jobs if not is_finished(directories[name], keys[name])]
            watcher.started(graph, {n: graph.own_flops(n) for n in missing}, len(jobs) - len(missing))
            if missing:
                pool = executor(count, run / "workers.log")
                try:
                    _make_all(graph, {name: jobs[name] for name in missing}, pool, watcher)
                finally:
                    pool.close()
            write_references(prepared, run, table.data.test_examples, watcher.data)
            _tidy(run)
            write_text(run / "plan.toml", Path(plan).read_text(encoding="utf-8"))
    return Run(run, table, graph, directories)


def jobs_of(
    plan: Plan,
    run: Path,
    graph: Graph,
    keys: dict[str, str],
    directories: dict[str, Path],
    prepared: Prepared,
    workers: int,
) -> dict[str, Job]:
    """The job of every node of *graph*, to be made by *workers* processes."""
    from ract.tree.machine import threads_for

    return {
        node.name: Job(
            node=node,
            key=keys[node.name],
            data=str(prepared.data.path),
            out=str(directories[node.name]),
            work=str(run / "work" / keys[node.name][:12]),
            threads=threads_for(graph, node.name, workers),
            settings=model_settings(plan),
            test_tokens=plan.data.test_tokens,
            test_examples=plan.data.test_examples,
            origin=prepared.origin.path if prepared.origin else "",
            source_language=plan.data.source_language,
            target_language=plan.data.target_language,
            parents={p: str(directories[p]) for p in node.parents},
            teachers=tuple(str(directories[t]) for t in node.teachers),
            own_flops=graph.own_flops(node.name),
            total_flops=graph.total_flops(node.name),
        )
        for node in graph
    }


def _make_all(graph: Graph, jobs: dict[str, Job], pool: Executor, watcher: Watcher) -> None:
    """Submit each job once its parents are there, the one with the most work behind it first."""
    behind = {name: sum(graph.own_flops(n.name) for n in graph if name in graph.ancestry(n.name)) for name in jobs}
    waiting, running = dict(jobs), set[str]()
    while waiting or running:
        ready = [
            n for n in waiting if not any(p in waiting or p in running for p in (*graph[n].parents, *graph[n].teachers))
        ]
        for name in sorted(ready, key=lambda n: (n == graph.baseline, -behind[n]))[: pool.free]:
            pool.submit(waiting.pop(name))
            running.add(name)
            watcher.node_started(name)
        event = pool.wait()
        if event.kind == "finished":
            running.discard(event.node)
            watcher.node_finished(event.node)
        else:
            watcher.node_progress(event.node, event.what, event.done, event.total)


def _tidy(run: Path) -> None:
    """Checkpoints of nodes that are no longer wanted (the plan was edited while they were under way)."""
    work = run / "work"
    if work.is_dir():
        shutil.rmtree(work, ignore_errors=True)
