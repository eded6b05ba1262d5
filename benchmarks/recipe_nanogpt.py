"""tiny-shakespeare by characters, side by side with nanoGPT's own CPU recipe: same machine, same wall clock.

nanoGPT (github.com/karpathy/nanoGPT) is fetched by the reader and not part of this project. Its ``prepare.py`` and
``train.py`` are run as they are, with the settings that its README gives for a CPU. Then ours get as many FLOPs as this
machine does in that time and, where asked, in an hour. Nothing else should be running.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.recipe_corpora import CHARACTERS, Setting, sources
from benchmarks.recipe_plans import plan_of, toml_of
from benchmarks.recipe_trees import Values, recipe_named
from ract.checkpoint.directory import write_text
from ract.checkpoint.lineage import read_lineage
from ract.errors import BadInput, RactError
from ract.machine import processors
from ract.tree.build import build

# README of nanoGPT: "I only have a macbook (or other cheap computer)".
CPU_SETTINGS = (
    *("--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64", "--batch_size=12"),
    *("--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"),
)
_SETTING = Setting("characters", 258, "4x128", "4x128", (), 1_000_000, most_tokens=1_020_000)
_HOUR, _GUESSED_FLOPS_PER_SECOND = 3600.0, 2e10
# What ours are: a model of nanoGPT's size alone and grown, and one such leaf a processor, averaged and distilled.
CONTENDERS = ("single", "best-stack", "ensemble", "ensemble-distil")
_LR = 6e-3  # what tuning found for models of this size with text enough
_NAMES = {
    "single": "one model",
    "best-stack": "two blocks, stacked twice, healed",
    "ensemble": "{members} models, averaged",
    "ensemble-distil": "{members} models, distilled into one",
}
_VALID_SHARE = 0.03  # of the training text: the last tenth, which both are measured on, serves no choice of ours
_STEP = re.compile(r"step \d+: train loss [\d.]+, val loss ([\d.]+)")
_SIZE = re.compile(r"number of parameters: ([\d.]+)M")


def side_by_side(checkout: Path, data: Path | None, work: Path, results: Path, *, hour: bool) -> int:
    """Run nanoGPT in *checkout*, then ours, and write ``nanogpt.json`` into *results*. Returns an exit code.

    With *hour* the ensemble and its student are built once more, an hour each.

    Raises BadInput where *checkout* is not nanoGPT or the corpus is not there, RactError when nanoGPT fails.
    """
    files = sources(data, CHARACTERS)
    folder = (work / "nanogpt").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    theirs = run_nanogpt(checkout.absolute(), files, folder)
    print(json.dumps(theirs), file=sys.stderr, flush=True)
    rows = [theirs]
    speed, beside = _speed(files, folder)
    longer = [(_HOUR, ("ensemble", "ensemble-distil"))] if hour else []
    for seconds, names in [(theirs["seconds"], CONTENDERS), *longer]:
        for name in names:
            made = _ours(name, max(seconds / 2, seconds - beside), speed, files, folder)
            rows.append({key: value for key, value in made.items() if key != "node_seconds"})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            write_text(results / "nanogpt.json", json.dumps({"rows": rows}, indent=1) + "\n")
    return 0


def run_nanogpt(checkout: Path, files: dict[str, Path], folder: Path) -> dict[str, Any]:
    """nanoGPT's loss on the last tenth of the text, the best that it reports, and its wall clock."""
    script = checkout / "train.py"
    prepare = checkout / "data" / "shakespeare_char" / "prepare.py"
    if not script.is_file() or not prepare.is_file():
        raise BadInput(f"{checkout} is no checkout of nanoGPT", "Give the folder that holds its train.py")
    text = "".join(files[split].read_text(encoding="utf-8") for split in ("train", "valid", "test"))
    prepare.with_name("input.txt").write_text(text, encoding="utf-8")
    _checked([sys.executable, str(prepare)], checkout)
    begun = time.monotonic()
    command = [sys.executable, script.name, "config/train_shakespeare_char.py", f"--out_dir={folder / 'theirs'}"]
    output = _checked([*command, *CPU_SETTINGS], checkout)
    losses = [float(value) for value in _STEP.findall(output)]
    if not losses:
        raise RactError("nanoGPT printed no validation loss", f"Run it by hand in {checkout}")
    size = _SIZE.search(output)
    return {
        "name": "nanoGPT, its CPU recipe",
        "nats_per_character": min(losses),
        "seconds": time.monotonic() - begun,
        "parameters": round(float(size[1]) * 1e6) if size else 0,
    }


def _checked(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RactError(f"{Path(command[1]).name} of nanoGPT failed: {last}", f"Run it by hand in {folder}")
    return done.stdout


def _speed(files: dict[str, Path], folder: Path) -> tuple[float, float]:
    """FLOPs a second of all processors on leaves of this shape, and the seconds of a build beside its training."""
    made = _ours("ensemble", 1.0, 20 * _GUESSED_FLOPS_PER_SECOND * processors(), files, folder)
    training = made.pop("node_seconds") / processors()
    return made["flops"] / training, made["seconds"] - training


def _ours(name: str, seconds: float, speed: float, files: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Build *name* with what *speed* does in *seconds*, from nothing, and measure it on the last tenth of the text."""
    from benchmarks.recipe_measure import window_losses

    members = max(2, processors()) if seconds < _HOUR / 2 else 4
    values = Values(members=members, lr=_LR)
    fraction = speed * seconds / _SETTING.flops
    plan = plan_of(recipe_named(name), _SETTING, values, files, seed=0, fraction=fraction)
    plan["data"] = {"train": [str(files["train"])], "valid_fraction": _VALID_SHARE, "test_fraction": 0.0}
    place = folder / f"ours-{name}-{seconds:.0f}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    write_text(place / "asked.toml", toml_of(plan))
    begun = time.monotonic()
    run = build(place / "asked.toml", place, workers=processors())
    wall = time.monotonic() - begun
    windows = window_losses(run.final, [str(files["valid"]), str(files["test"])])
    graph = run.graph
    return {
        "name": _NAMES[name].format(members=members),
        "nats_per_character": float(windows["nats"].sum() / windows["bytes"].sum()),
        "seconds": wall,
        "parameters": graph[graph.final].shape.parameters,
        "flops": graph.total_flops(graph.final),
        "node_seconds": sum(lineage.cost.seconds for lineage in map(read_lineage, run.directories.values()) if lineage),
    }
