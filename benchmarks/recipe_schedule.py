"""Carry out many runs, one processor each, and say how far they are. Started again, it goes on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.recipe_run import PROGRESS, RESULT, Spec, asked_of, files_of, result_of
from ract.checkpoint.directory import write_text
from ract.plan.quantities import show_count, show_time
from ract.runtime.machine import processors
from ract.tree.machine import training_speed

_POLL_SECONDS, _REPORT_SECONDS = 0.5, 30.0
_ASSUMED_FLOPS_PER_SECOND = 3e10


@dataclass
class _Slot:
    """A processor and the run on it."""

    processor: int | None
    spec: Spec | None = None
    process: subprocess.Popen[bytes] | None = None


def run_all(specs: Sequence[Spec], work: Path, data: Path | None, jobs: int | None) -> list[str]:
    """Make every run of *specs* that is not finished, *jobs* at a time; returns the names of those that failed.

    A run whose cell and seed are under way waits, if others do not: it may share nodes with that run.
    Raises BadInput, before anything runs, where a corpus is not there.
    """
    for place in {spec.cell.name: spec.cell for spec in specs}.values():
        files_of(place, data, work)
    waiting = [spec for spec in specs if result_of(spec, work, data) is None]
    slots = _slots(jobs)
    failed: list[str] = []
    finished, reported = len(specs) - len(waiting), 0.0
    try:
        while waiting or any(slot.process for slot in slots):
            for slot in slots:
                if slot.process is not None and slot.process.poll() is not None:
                    assert slot.spec is not None
                    if slot.process.returncode:
                        failed.append(slot.spec.name)
                        print(f"{slot.spec.name} failed: see {_log(slot.spec, work)}", file=sys.stderr)
                    finished, slot.process, slot.spec = finished + 1, None, None
                if slot.process is None and waiting:
                    slot.spec = waiting.pop(_next(waiting, slots))
                    slot.process = _start(slot, work, data)
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                under_way = [slot.spec for slot in slots if slot.spec is not None]
                print(_status(finished, len(specs), under_way, waiting, work, len(slots)), file=sys.stderr, flush=True)
            time.sleep(_POLL_SECONDS)
    finally:
        for slot in slots:
            if slot.process is not None and slot.process.poll() is None:
                slot.process.terminate()
                slot.process.wait()
    return failed


def _slots(jobs: int | None) -> list[_Slot]:
    if not hasattr(os, "sched_getaffinity"):
        return [_Slot(None) for _ in range(jobs or processors())]
    own = sorted(os.sched_getaffinity(0))
    return [_Slot(own[number % len(own)]) for number in range(jobs or len(own))]


def _next(waiting: Sequence[Spec], slots: Sequence[_Slot]) -> int:
    busy = {(slot.spec.cell.name, slot.spec.seed) for slot in slots if slot.spec is not None and slot.process}
    alone = (i for i, spec in enumerate(waiting) if (spec.cell.name, spec.seed) not in busy)
    return next(alone, 0)


def _log(spec: Spec, work: Path) -> Path:
    return spec.folder(work) / "log.txt"


def _start(slot: _Slot, work: Path, data: Path | None) -> subprocess.Popen[bytes]:
    assert slot.spec is not None
    log = _log(slot.spec, work)
    log.parent.mkdir(parents=True, exist_ok=True)
    for stale in (PROGRESS, RESULT):
        (log.parent / stale).unlink(missing_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.recipe_run", asked_of(slot.spec, work, data, slot.processor)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )


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
        spent += sum(node["processor_seconds"] for node in record["nodes"].values())
        flops += record["flops"]
    if spent:
        work.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(flops / spent))
        return flops / spent
    speeds = training_speed(1, measure=False)
    return min(speeds.values(), default=_ASSUMED_FLOPS_PER_SECOND) if speeds else _ASSUMED_FLOPS_PER_SECOND


def listing(specs: Sequence[Spec], work: Path, data: Path | None, jobs: int | None) -> str:
    """The runs with their state, budget and expected time, and the sum of what is left."""
    speed, rows, left = speed_of(work), [], 0.0
    for spec in specs:
        done = result_of(spec, work, data) is not None
        stale = (spec.folder(work) / RESULT).is_file()
        share = 1.0 if done else 0.0 if stale else _share(spec, work)
        left += spec.flops * (1 - share)
        state = "done" if done else f"{share:.0%}" if share else "waiting"
        rows.append(f"{spec.name:60} {state:8} {show_count(spec.flops):>6} FLOPs  {show_time(spec.flops / speed)}")
    count = len(_slots(jobs))
    tail = f"{len(specs)} runs, {show_count(sum(s.flops for s in specs))} FLOPs; {show_time(left / speed / count)} left"
    return "\n".join([*rows, f"{tail} on {count} processors at {show_count(speed)} FLOPs a second each"])


def results_of(specs: Sequence[Spec], work: Path, data: Path | None) -> list[tuple[Spec, dict[str, Any]]]:
    """Those of *specs* that are finished, with their records."""
    found = ((spec, result_of(spec, work, data)) for spec in specs)
    return [(spec, record) for spec, record in found if record is not None]
