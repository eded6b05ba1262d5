"""What the runs of ``benchmarks/recipes.py`` come to: means and spreads, paired bootstraps, time on several workers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.recipe_records import processor_seconds
from benchmarks.recipe_run import Spec

CONTROLS = ("single", "best-single", "child-alone", "one-block", "stack", "ensemble", "merge", "two-hops", "three-hops")
WORKERS = (1, 2, 4, 8)
RESAMPLES, INTERVAL = 2000, 0.95
_LEAST_GAIN = 0.005  # a share of a smaller gain says nothing
_REACH = 4.0  # beyond so many times the last point no curve is followed

Runs = Sequence[tuple[Spec, Mapping[str, Any]]]
Array = npt.NDArray[np.float64]


def results(runs: Runs, tuning: Mapping[str, Any]) -> dict[str, Any]:
    """What finished *runs* come to, by cell and recipe."""
    cells: dict[str, dict[str, list[tuple[Spec, Mapping[str, Any]]]]] = {}
    for spec, record in runs:
        label = spec.name.split("/")[2]
        cells.setdefault(spec.cell.name, {}).setdefault(label, []).append((spec, record))
    return {"tuning": dict(tuning), "cells": {name: _cell(found) for name, found in cells.items()}}


def _cell(found: Mapping[str, Runs]) -> dict[str, Any]:
    # Two machines have no mean of their seconds, and rows of two are not compared: the first that was timed counts.
    timed = (record["device"] for runs in found.values() for _, record in runs if not record.get("accelerator"))
    clock = next(timed, "")
    recipes = {name: _recipe(runs, clock) for name, runs in found.items()}
    for name, runs in found.items():
        others = [control for control in CONTROLS if control in found and control != name]
        compared = {control: _against(runs, found[control]) for control in others}
        recipes[name]["against"] = {control: one for control, one in compared.items() if one is not None}
    curve = _curve(recipes)
    for one in recipes.values():
        one.update(_same_loss(one, curve, recipes.get("single")))
        one.update(_gain_kept(one, recipes.get("child-alone")))
    first = next(iter(found.values()))[0]
    return {
        "corpus": first[0].cell.corpus,
        "setting": first[0].cell.setting.name,
        "budget": first[0].cell.setting.flops,
        "train_tokens": first[1]["train_tokens"],
        "curve": curve,
        "recipes": recipes,
    }


def _recipe(runs: Runs, clock: str) -> dict[str, Any]:
    one: dict[str, Any] = {"fraction": runs[0][1]["fraction"], "values": runs[0][1]["values"]}
    one |= {"parameters": runs[0][1]["parameters"], "runs": [_run(record) for _, record in runs]}
    for split in ("valid", "test"):
        one[split] = mean_and_spread([run[split] for run in one["runs"]])
    one["test_bits_per_byte"] = mean_and_spread([run["test_bits_per_byte"] for run in one["runs"]])
    one["flops"] = statistics.fmean(run["flops"] for run in one["runs"])
    timed = [run for run in one["runs"] if "critical_seconds" in run and run["device"] == clock]
    if timed:
        one["processor_seconds"] = statistics.fmean(run["processor_seconds"] for run in timed)
        one["critical_seconds"] = {
            str(workers): statistics.fmean(run["critical_seconds"][str(workers)] for run in timed)
            for workers in WORKERS
        }
    return one


def _run(record: Mapping[str, Any]) -> dict[str, Any]:
    losses, nodes = record["losses"], record["nodes"]
    parts = {role: losses[role]["test"]["nats_per_token"] for role in ("teacher", "leaf") if role in losses}
    times: dict[str, Any] = {}
    if not record.get("accelerator"):  # many runs share one, and what a processor does meanwhile says nothing
        times["processor_seconds"] = processor_seconds(record)
        times["critical_seconds"] = {str(workers): makespan(nodes, workers) for workers in WORKERS}
    return {
        "seed": record["seed"],
        "device": record["device"],
        "valid": losses["final"]["valid"]["nats_per_token"],
        "test": losses["final"]["test"]["nats_per_token"],
        "test_bits_per_byte": losses["final"]["test"]["bits_per_byte"],
        **parts,
        "flops": record["flops"],
        **times,
        "nodes": len(nodes),
    }


def mean_and_spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, and standard deviation over seeds where there are several."""
    return {"mean": statistics.fmean(values), "spread": statistics.stdev(values) if len(values) > 1 else None}


def makespan(nodes: Mapping[str, Mapping[str, Any]], workers: int) -> float:
    """Seconds that *nodes* take on *workers* processors, each node on one: what is measured a node, scheduled.

    A free processor takes the ready node with the longest way to the end (list scheduling; Graham, 1969).
    """
    children: dict[str, list[str]] = {name: [] for name in nodes}
    for name, node in nodes.items():
        for parent in node["parents"]:
            children[parent].append(name)
    way: dict[str, float] = {}
    for name in reversed(nodes):  # parents come before children
        way[name] = nodes[name]["processor_seconds"] + max((way[c] for c in children[name]), default=0.0)
    ends: dict[str, float] = {}
    free = [0.0] * workers
    waiting = list(nodes)
    while waiting:
        now = min(free)
        ready = [n for n in waiting if all(ends.get(p, math.inf) <= now for p in nodes[n]["parents"])]
        if not ready:  # the processor that is free first waits for the next node to end
            free[free.index(now)] = min(end for end in ends.values() if end > now)
            continue
        chosen = max(ready, key=lambda n: way[n])
        waiting.remove(chosen)
        ends[chosen] = now + nodes[chosen]["processor_seconds"]
        free[free.index(now)] = ends[chosen]
    return max(ends.values())


def _against(ours: Runs, control: Runs) -> dict[str, Any] | None:
    """How much lower the test loss of *ours* is, relative to *control*, over the seeds that both have."""
    both = sorted({spec.seed for spec, _ in ours} & {spec.seed for spec, _ in control})
    if not both:
        return None
    means = [_windows([record for spec, record in runs if spec.seed in both]) for runs in (ours, control)]
    return {"seeds": both, **paired_bootstrap(*means)}


def _windows(records: Sequence[Mapping[str, Any]]) -> Array:
    """Nats on each test window, the mean over the seeds: shape (windows,)."""
    return np.mean([record["test_nats"] for record in records], axis=0)


def paired_bootstrap(ours: Array, control: Array, seed: int = 0) -> dict[str, float]:
    """The relative difference of two losses on the same windows, and its 95% interval from 2,000 resamples of windows.

    *ours* and *control*: nats, shape (windows,). Negative is better (Efron and Tibshirani, 1993; paired as in Koehn,
    W04-3250). Says how sure the difference is on other text of the kind, not with other seeds: those are the spread.
    """
    drawn = np.random.default_rng(seed).multinomial(len(ours), np.full(len(ours), 1 / len(ours)), size=RESAMPLES)
    ratios = (drawn @ ours) / (drawn @ control) - 1
    low, high = np.quantile(ratios, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return {"difference": float(ours.sum() / control.sum() - 1), "low": float(low), "high": float(high)}


def _curve(recipes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, float]]:
    """Test loss of the single model against FLOPs: separate runs, each with its own decay to the end."""
    points = [one for name, one in recipes.items() if name.partition("@")[0] == "single"]
    points.sort(key=lambda one: one["flops"])
    return [{"flops": one["flops"], "test": one["test"]["mean"], "seeds": len(one["runs"])} for one in points]


def flops_for(loss: float, curve: Sequence[Mapping[str, float]]) -> float | None:
    """FLOPs at which *curve* has *loss*: straight lines between its points in logarithms, the outer ones prolonged.

    None where there are fewer than two points, where the loss does not fall, or beyond four times the last point.
    """
    if len(curve) < 2 or any(a["test"] <= b["test"] for a, b in pairwise(curve)):
        return None
    x = [math.log(point["flops"]) for point in curve]
    y = [math.log(point["test"]) for point in curve]
    i = next((i for i in range(len(y) - 1) if y[i + 1] <= math.log(loss)), len(y) - 2)
    found = math.exp(x[i] + (math.log(loss) - y[i]) * (x[i + 1] - x[i]) / (y[i + 1] - y[i]))
    return found if curve[0]["flops"] / _REACH <= found <= curve[-1]["flops"] * _REACH else None


def _same_loss(
    one: Mapping[str, Any], curve: Sequence[Mapping[str, float]], single: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The share of the single model's FLOPs that the recipe takes to its loss, and where both are timed of its time."""
    needed = flops_for(one["test"]["mean"], curve)
    if needed is None or single is None:
        return {}
    share: dict[str, Any] = {"flops_share": one["flops"] / needed}
    if "critical_seconds" in one and "processor_seconds" in single:
        seconds = single["processor_seconds"] * needed / single["flops"]
        share["time_share"] = {workers: value / seconds for workers, value in one["critical_seconds"].items()}
    return share


def _gain_kept(one: Mapping[str, Any], child: Mapping[str, Any] | None) -> dict[str, float]:
    """What a student keeps of its teacher's gain: over the teacher's own leaf, and over one leaf with all the FLOPs."""
    runs = [run for run in one["runs"] if "teacher" in run]
    if not runs:
        return {}
    teacher, leaf, student = (statistics.fmean(run[key] for run in runs) for key in ("teacher", "leaf", "test"))
    kept = {"teacher_test": teacher, "leaf_test": leaf, "gain_kept": (leaf - student) / (leaf - teacher)}
    if child is not None and child["test"]["mean"] > (1 + _LEAST_GAIN) * teacher:
        alone = child["test"]["mean"]
        kept["gain_kept_over_child_alone"] = (alone - student) / (alone - teacher)
    return kept
