"""``ract check``: what a plan will build and cost, without torch and without reading the text twice."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ract.cost import BYTES_PER_PARAMETER
from ract.data.sources import size_bytes
from ract.plan.defaults import TOKENS_PER_PARAMETER
from ract.plan.derive import build_graph
from ract.plan.graph import DataSize, Graph, Node
from ract.plan.schema import Plan, load_plan
from ract.tree.data import origin_of
from ract.tree.machine import check_memory, memory_of, seconds_of, threads_for, training_speed, worker_count

# Text bytes per token of a byte-level BPE, by vocabulary: measured on English, code and Chinese, rounded down.
_BYTES_PER_TOKEN = {512: 2.0, 1024: 2.4, 2048: 2.9, 4096: 3.3, 8192: 3.7, 16384: 4.0}


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

    The number of training tokens is estimated from the size of the text. Times come from a short calibration of this
    machine, made once in a process of its own (not at all without *calibrate*).
    Raises BadInput for what is wrong with the plan, its data, or the machine's memory.
    """
    table = load_plan(plan)
    size = estimated_size(table)
    graph = build_graph(table, size, origin_of(table, [str(i) for i in range(size.labels)]))
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


def estimated_size(plan: Plan) -> DataSize:
    """The tokens of the train split, from the size of its text (0 where a data set does not say its size).

    Two classes are assumed where there are any: more of them cost next to nothing.
    """
    data = plan.data
    nearest = min(_BYTES_PER_TOKEN, key=lambda v: abs(v - plan.tokenizer.vocab_size))

    def tokens(sources: list[str], valid: list[str], test: list[str]) -> int:
        held_out = (0.0 if valid else data.valid_fraction) + (0.0 if test else data.test_fraction)
        return int((size_bytes(sources) or 0) * (1 - held_out) / _BYTES_PER_TOKEN[nearest])

    domains = {name: tokens(d.train, d.valid, d.test) for name, d in data.domains.items()}
    train = tokens(data.train, data.valid, data.test) + sum(domains.values())
    unlabelled = int((size_bytes(data.unlabelled) or 0) / _BYTES_PER_TOKEN[nearest])
    return DataSize(train, domains, train + unlabelled, labels=2 if data.task == "classification" else 0)


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
