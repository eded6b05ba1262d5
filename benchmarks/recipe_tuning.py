"""The tuning stage: each side's values chosen on valid text, with a seed that no reported run has.

Coordinate by coordinate from the search's start: the best value of one coordinate is kept for the next. All searches
go on side by side, so that no processor waits. All trials and costs are recorded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from benchmarks.recipe_matrix import Search, values_from
from benchmarks.recipe_records import processor_seconds
from benchmarks.recipe_run import Spec, result_of
from benchmarks.recipe_schedule import run_all
from benchmarks.recipe_trees import Values
from ract.checkpoint.directory import write_text
from ract.errors import RactError


def tune(
    searches: Sequence[Search],
    work: Path,
    data: Path | None,
    jobs: int | None,
    *,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Carry out *searches*; the values found are written to ``WORK/tuning.json`` and returned with all trials.

    *before* has the records of their first laps, if these are second ones: those trials count too, and the best of all
    is chosen.

    A trial that fails, because it diverged for instance, is out. Raises RactError when all of a coordinate fail.
    """
    best = {search.key: search.start for search in searches}
    tried: dict[str, dict[str, Spec]] = {search.key: {} for search in searches}
    for coordinates in zip_longest(*(search.grid for search in searches)):
        rounds = {
            search.key: candidates(best[search.key], *coordinate)
            for search, coordinate in zip(searches, coordinates, strict=True)
            if coordinate is not None
        }
        trials = {s.key: [s.trial(values) for values in rounds[s.key]] for s in searches if s.key in rounds}
        run_all([spec for specs in trials.values() for spec in specs], work, data, jobs)
        for key, specs in trials.items():
            tried[key] |= {spec.name: spec for spec in specs}
            best[key] = min(specs, key=lambda spec: valid_loss(spec, work)).values
            if math.isinf(min(valid_loss(spec, work) for spec in specs)):
                raise RactError(f"no trial of {key} ended", "See their logs; the same command goes on")
    found = {search.key: _record(search, best[search.key], tried[search.key], work) for search in searches}
    if before is not None:
        found = {key: _joined(before[key], record) for key, record in found.items()}
    file = work / "tuning.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    write_text(file, json.dumps({**known, **found}, indent=1) + "\n")
    return {**known, **found}


def _joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The record of two laps of one search, with the values of the better one."""
    grid: dict[str, list[Any]] = {}
    for lap in (first, second):
        for name, options in lap["grid"].items():
            grid[name] = list(dict.fromkeys([*grid.get(name, ()), *options]))
    tried = [values_from(trial["values"]) for trial in first["trials"]]
    trials = [*first["trials"], *(one for one in second["trials"] if values_from(one["values"]) not in tried)]
    reached = [trial for trial in trials if trial["valid_nats_per_token"] is not None]
    values = min(reached, key=lambda trial: trial["valid_nats_per_token"])["values"]
    return {**second, "grid": grid, "values": values, "trials": trials, "flops": sum(t["flops"] for t in trials)}


def candidates(values: Values, name: str, options: Sequence[Any]) -> list[Values]:
    """*values* with each of the *options* for *name*, once each."""
    return list(dict.fromkeys(replace(values, **{name: option}) for option in options))


def valid_loss(spec: Spec, work: Path) -> float:
    """What *spec* reached on the valid text, in nats a token; infinite where it failed (it may have diverged)."""
    record = result_of(spec, work)
    return record["losses"]["final"]["valid"]["nats_per_token"] if record else math.inf


def _record(search: Search, values: Values, tried: dict[str, Spec], work: Path) -> dict[str, Any]:
    trials = []
    for spec in tried.values():
        record = result_of(spec, work)
        if record is None:  # it diverged; what it took until then is not counted
            trials.append({"values": asdict(spec.values), "valid_nats_per_token": None, "flops": 0.0})
            continue
        trials.append(
            {
                "values": asdict(spec.values),
                "valid_nats_per_token": record["losses"]["final"]["valid"]["nats_per_token"],
                "flops": record["flops"],
                "parameters": record["parameters"],
                "processor_seconds": processor_seconds(record),
                "device": record["device"],
            }
        )
    return {
        "corpus": search.cell.corpus,
        "setting": search.cell.setting.name,
        "side": search.side,
        "recipe": search.recipe,
        "grid": {name: list(options) for name, options in search.grid},
        "values": asdict(values),
        "trials": trials,
        "flops": sum(trial["flops"] for trial in trials),
    }
