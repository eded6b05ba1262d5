"""``ract check``: what a plan will build and cost, without torch and from the first rows of the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ract.cost import BYTES_PER_PARAMETER
from ract.plan.defaults import TOKENS_PER_PARAMETER
from ract.plan.derive import build_graph
from ract.plan.graph import Graph, Node
from ract.plan.schema import load_plan
from ract.tree.data import origin_of
from ract.tree.machine import check_memory, memory_of, seconds_of, threads_for, training_speed, worker_count
from ract.tree.size import estimated_size


@dataclass(frozen=True)
class Row:
    """One kind of node at one level. *members* such nodes are made; FLOPs and seconds are of all of them together."""

    level: int
    method: str
    members: int
    parameters: int
    size_bytes: dict[str, float]
    tokens: int
    train_flops: float
    seconds: float | None
    peak_memory_bytes: float
    threads: int


@dataclass(frozen=True)
class Check:
    """The whole answer: *seconds* of wall-clock time with *workers* processes; *single* is the equal-FLOP model."""

    name: str
    rows: list[Row]
    workers: int
    train_tokens: int
    total_flops: float
    seconds: float | None
    single: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def check(plan: str | Path, *, workers: int | None = None, calibrate: bool = True) -> Check:
    """Validate *plan* and say what it costs.

    The number of training tokens is estimated (:func:`ract.tree.size.estimated_size`). Times come from a short
    calibration of this machine, made once in a process of its own (not at all without *calibrate*).
    Raises BadInput for what is wrong with the plan, its data, or the machine's memory.
    """
    table = load_plan(plan)
    origin = origin_of(table, ["0", "1"] if table.data.task == "classification" else [])
    size = estimated_size(table, origin)
    graph = build_graph(table, size, origin)
    check_memory(graph)
    count = worker_count(graph, workers)
    threads = {node.name: threads_for(graph, node.name, count) for node in graph}
    speeds = {t: training_speed(t, measure=calibrate) for t in sorted(set(threads.values()))}
    seconds = {n.name: seconds_of(graph, n.name, s) for n in graph if (s := speeds[threads[n.name]])}
    return Check(
        name=table.name,
        rows=_rows(graph, threads, seconds),
        workers=count,
        train_tokens=size.tokens,
        total_flops=graph.total_flops(graph.final),
        seconds=_makespan(graph, seconds, count) if len(seconds) == len(graph.nodes) else None,
        single=_single(graph),
    )


def _rows(graph: Graph, threads: dict[str, int], seconds: dict[str, float]) -> list[Row]:
    groups: dict[tuple[int, str], list[Node]] = {}
    for node in graph:
        groups.setdefault((node.level, node.method), []).append(node)
    rows = []
    for (level, method), nodes in groups.items():
        first = nodes[0]
        known = [seconds[n.name] for n in nodes if n.name in seconds]
        rows.append(
            Row(
                level=level,
                method=method,
                members=len(nodes),
                parameters=first.shape.parameters,
                size_bytes={p: first.shape.size_bytes(p) for p in BYTES_PER_PARAMETER},
                tokens=sum(n.train.tokens for n in nodes if n.train),
                train_flops=sum(graph.own_flops(n.name) for n in nodes),
                seconds=sum(known) if len(known) == len(nodes) else None,
                peak_memory_bytes=memory_of(graph, first),
                threads=threads[first.name],
            )
        )
    return rows


def _makespan(graph: Graph, seconds: dict[str, float], workers: int) -> float:
    """Wall-clock time with *workers* processes, as a build schedules them: a node starts when its parents are there and
    a worker is free, the baseline only when nothing else can.
    """
    now, ended, running = 0.0, set[str](), dict[str, float]()
    waiting = [node.name for node in sorted(graph, key=lambda node: node.name == graph.baseline)]
    while waiting or running:
        for name in [n for n in waiting if ended.issuperset((*graph[n].parents, *graph[n].teachers))]:
            if len(running) < workers:
                running[name] = now + seconds[name]
                waiting.remove(name)
        first = min(running, key=lambda name: running[name])
        now = running.pop(first)
        ended.add(first)
    return now


def _single(graph: Graph) -> dict[str, Any]:
    """What the tree's FLOPs would buy as one model: of the final size, and at 20 tokens per parameter (2203.15556)."""
    flops = graph.total_flops(graph.final)
    final = graph[graph.final].shape
    each = final.train_flops_per_token(256, 4096, "muon")
    optimal = (flops / (6 * TOKENS_PER_PARAMETER)) ** 0.5
    return {
        "parameters": final.parameters,
        "tokens": int(flops / each),
        "compute_optimal_parameters": int(optimal),
        "compute_optimal_tokens": int(TOKENS_PER_PARAMETER * optimal),
    }
