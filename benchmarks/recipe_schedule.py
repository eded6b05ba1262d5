"""Carry out many runs, one processor each, and say how far they are. Started again, it goes on where it stopped.

Where there is an accelerator, the runs at a time share it: small models leave most of it idle one by one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from benchmarks.recipe_records import processor_seconds
from benchmarks.recipe_run import LOG, PROGRESS, RESULT, Spec, files_of, result_of, serve
from ract.checkpoint.directory import write_text
from ract.machine import processors
from ract.plan.quantities import show_count, show_time
from ract.train.device import device_name
from ract.tree.machine import training_speed

_REPORT_SECONDS = 30.0
_ASSUMED_FLOPS_PER_SECOND = 3e10


def run_all(specs: Sequence[Spec], work: Path, data: Path | None, jobs: int | None) -> list[str]:
    """Make every run of *specs* that is not finished, *jobs* at a time; returns the names of those that failed.

    A run whose cell and seed are under way waits, if others do not: it may share nodes with that run.
    Raises BadInput, before anything runs, where a corpus is not there.
    """
    for place in {spec.cell.name: spec.cell for spec in specs}.values():
        files_of(place, data, work)
    waiting = [spec for spec in specs if result_of(spec, work) is None]
    if not waiting:
        return []
    count, finished, reported = jobs or _own_processors(), len(specs) - len(waiting), 0.0
    under_way: dict[Future[int], Spec] = {}
    failed: list[str] = []
    pool = _pool(min(count, len(waiting)))
    try:
        while waiting or under_way:
            while waiting and len(under_way) < count:
                spec = waiting.pop(_next(waiting, list(under_way.values())))
                _prepare(spec, work)
                under_way[pool.submit(serve, spec, work, data)] = spec
            for future in wait(under_way, timeout=_REPORT_SECONDS, return_when=FIRST_COMPLETED).done:
                spec, finished = under_way.pop(future), finished + 1
                if future.result():
                    failed.append(spec.name)
                    print(f"{spec.name} failed: see {spec.folder(work) / LOG}", file=sys.stderr)
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                running = list(under_way.values())
                print(_status(finished, len(specs), running, waiting, work, count), file=sys.stderr, flush=True)
    finally:
        _end(pool, stop=bool(under_way))
    return failed


def _pool(jobs: int) -> ProcessPoolExecutor:
    """Processes that each carry out one run after another: torch is imported once, an accelerator opened once."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}  # read when their imports run
    context = multiprocessing.get_context("spawn")
    turns = context.Queue()
    for number in range(jobs):
        turns.put(number)
    return ProcessPoolExecutor(jobs, context, _begin, (turns,))


def _begin(turns: Any) -> None:
    """In a process of the pool: one processor, of which each process has its own where there are enough."""
    if hasattr(os, "sched_getaffinity"):
        own = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {own[turns.get() % len(own)]})


def _end(pool: ProcessPoolExecutor, *, stop: bool) -> None:
    """Let the processes go; with *stop* what is under way too, which goes on where it stopped when it is asked for."""
    if not stop:
        pool.shutdown()
        return
    processes = list((pool._processes or {}).values())  # before Python 3.14 the pool has no way of its own to stop them
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
        process.join()


def _own_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else processors()


def _next(waiting: Sequence[Spec], under_way: Sequence[Spec]) -> int:
    busy = {(spec.cell.name, spec.seed) for spec in under_way}
    alone = (i for i, spec in enumerate(waiting) if (spec.cell.name, spec.seed) not in busy)
    return next(alone, 0)


def _prepare(spec: Spec, work: Path) -> None:
    folder = spec.folder(work)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (PROGRESS, RESULT):
        (folder / stale).unlink(missing_ok=True)


def _status(
    finished: int, total: int, under_way: Sequence[Spec], waiting: Sequence[Spec], work: Path, jobs: int
) -> str:
    speed = speed_of(work)
    left = sum(spec.flops for spec in waiting) + sum(spec.flops * (1 - _share(spec, work)) for spec in under_way)
    lines = ", ".join(f"{spec.name} {_share(spec, work):.0%}" for spec in under_way)
    return f"{finished} of {total} runs done; under way: {lines}; about {show_time(left / speed / jobs)} left"


def _share(spec: Spec, work: Path) -> float:
    """How much of the FLOPs of a run under way are done."""
    if (spec.folder(work) / RESULT).is_file():  # removed when the run began
        return 1.0
    try:
        state = json.loads((spec.folder(work) / PROGRESS).read_text(encoding="utf-8"))
        return state["done"] / state["total"] if state["total"] else 1.0
    except (OSError, ValueError):
        return 0.0


def speed_of(work: Path) -> float:
    """FLOPs a processor does in a second: as the finished runs in *work* had it, else as measured for ``ract check``.

    Kept in ``speed.json`` and made anew once in a while only: a large matrix has hundreds of results.
    """
    file = work / "speed.json"
    if file.is_file() and time.time() - file.stat().st_mtime < 10 * _REPORT_SECONDS:
        return json.loads(file.read_text(encoding="utf-8"))
    spent = flops = 0.0
    for result in work.glob(f"*/*/*/{RESULT}"):
        record = json.loads(result.read_text(encoding="utf-8"))
        if record["device"] == device_name():  # results made elsewhere say nothing about this machine
            spent += processor_seconds(record)
            flops += record["flops"]
    if spent:
        work.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(flops / spent))
        return flops / spent
    speeds = training_speed(1, measure=False)
    return min(speeds.values(), default=_ASSUMED_FLOPS_PER_SECOND) if speeds else _ASSUMED_FLOPS_PER_SECOND


def listing(specs: Sequence[Spec], work: Path, jobs: int | None) -> str:
    """The runs with their state, budget and expected time, and the sum of what is left."""
    speed, rows, left = speed_of(work), [], 0.0
    for spec in specs:
        done = result_of(spec, work) is not None
        stale = (spec.folder(work) / RESULT).is_file()
        share = 1.0 if done else 0.0 if stale else _share(spec, work)
        left += spec.flops * (1 - share)
        state = "done" if done else f"{share:.0%}" if share else "waiting"
        rows.append(f"{spec.name:60} {state:8} {show_count(spec.flops):>6} FLOPs  {show_time(spec.flops / speed)}")
    count = jobs or _own_processors()
    tail = f"{len(specs)} runs, {show_count(sum(s.flops for s in specs))} FLOPs; {show_time(left / speed / count)} left"
    return "\n".join([*rows, f"{tail} on {count} processors at {show_count(speed)} FLOPs a second each"])


def results_of(specs: Sequence[Spec], work: Path) -> list[tuple[Spec, Mapping[str, Any]]]:
    """Those of *specs* that are finished, with their records."""
    found = ((spec, result_of(spec, work)) for spec in specs)
    return [(spec, record) for spec, record in found if record is not None]
