"""tiny-shakespeare by characters, side by side with nanoGPT's own CPU recipe: same machine, same wall clock.

nanoGPT (github.com/karpathy/nanoGPT) is fetched by the reader and not part of this project. Its ``prepare.py`` and
``train.py`` are run as they are, with the settings that its README gives for a CPU. Then ours get as many FLOPs as this
machine does in that time and, where asked, in forty minutes. Nothing else should be running.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.recipe_corpora import CHARACTERS, Setting, sources
from benchmarks.recipe_matrix import SEEDS
from benchmarks.recipe_plans import plan_of, toml_of
from benchmarks.recipe_trees import Values, recipe_named
from ract.checkpoint.directory import write_text
from ract.errors import BadInput, RactError
from ract.machine import processors
from ract.train.device import best_device
from ract.tree.build import build

# README of nanoGPT: "I only have a macbook (or other cheap computer)".
CPU_SETTINGS = (
    *("--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64", "--batch_size=12"),
    *("--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"),
)
_LONGER_SECONDS, _GUESSED_FLOPS_PER_SECOND = 2400.0, 2e10
_TRIAL_SECONDS = 20.0  # as guessed; a machine is some three times as fast
_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Contender:
    """One of ours: a recipe with its values.

    *shape* is that of the leaves or, where it grows, of the final model; *window* the characters of a training window.
    """

    recipe: str
    shape: str
    values: Values
    name: str
    window: int = 128

    @property
    def setting(self) -> Setting:
        """A corpus of a million characters, so that this shape reads it once for one unit of the budget."""
        return Setting("characters", 258, self.shape, self.shape, (), _CHARACTERS, 0, 1_020_000, block_size=self.window)


_VALUES = Values(lr=6e-3, members=max(2, processors()))
# A model of nanoGPT's size alone and grown, a smaller one, and leaves of both sizes, one a processor, averaged.
CONTENDERS = (
    Contender("single", "4x128", _VALUES, "one model"),
    Contender("single", "3x128", _VALUES, "one model, smaller"),
    Contender("best-stack", "4x128", _VALUES, "two blocks, stacked twice, healed"),
    Contender("ensemble", "4x128", _VALUES, f"{_VALUES.members} models, averaged"),
    Contender("ensemble", "3x128", _VALUES, f"{_VALUES.members} smaller models, averaged"),
)
# Forty minutes are some fifteen passes: larger leaves, and what keeps them from learning the text by heart.
_REGULAR = Values(lr=1.5e-2, weight_decay=1.0, dropout=0.05, ema=0.98, members=_VALUES.members)
LONGER = Contender("ensemble", "4x192", _REGULAR, f"{_REGULAR.members} larger models, averaged, for longer", 256)
_VALID_SHARE = 0.03  # of the training text: the last tenth, which both are measured on, serves no choice of ours
THEIRS = "nanoGPT, its CPU recipe"
_STEP = re.compile(r"step \d+: train loss [\d.]+, val loss ([\d.]+)")
_SIZE = re.compile(r"number of parameters: ([\d.]+)M")


def side_by_side(checkout: Path, data: Path | None, work: Path, results: Path, *, longer: bool) -> int:
    """Run nanoGPT in *checkout*, then ours, and write ``nanogpt.json`` into *results*. Returns an exit code.

    Ours are the mean of three seeds; with *longer* one of ours has forty minutes a seed. What *work* has is not made
    again, so that it may be stopped after any run; what a clock says is of one machine, so delete it to begin anew.

    Raises BadInput where *checkout* is not nanoGPT or the corpus is not there, RactError when nanoGPT fails.
    """
    files = sources(data, CHARACTERS)
    folder = (work / "nanogpt").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "made.json"
    made: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def keep(name: str, part: str, value: Any) -> None:
        made.setdefault(name, {})[part] = value
        write_text(file, json.dumps(made, indent=1) + "\n")

    if THEIRS not in made:
        keep(THEIRS, "runs", [run_nanogpt(checkout.absolute(), files, folder)])
    [theirs] = made[THEIRS]["runs"]
    for contender in [*CONTENDERS, *([LONGER] if longer else [])]:
        seconds = _LONGER_SECONDS if contender is LONGER else theirs["seconds"]
        if contender.name not in made:  # every seed gets the same budget, whenever it is run
            keep(contender.name, "fraction", _fraction(contender, seconds, files, folder))
        runs = made[contender.name].get("runs", [])
        for seed in SEEDS[len(runs) :]:
            runs.append(_ours(contender, made[contender.name]["fraction"], files, folder, seed))
            print(json.dumps({"name": contender.name, "seed": seed, **runs[-1]}), file=sys.stderr, flush=True)
            keep(contender.name, "runs", runs)
    names = [THEIRS, *(contender.name for contender in (*CONTENDERS, LONGER))]
    rows = [{"name": name, **_joined(made[name]["runs"])} for name in names if "runs" in made.get(name, {})]
    write_text(results / "nanogpt.json", json.dumps({"rows": rows}, indent=1) + "\n")
    return 0


def _joined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of what several seeds have made: the losses of each and their mean, and how long they took here.

    A seed that an accelerator has trained has the same budget and counts for the loss; its clock says nothing.
    """
    losses = [one["nats_per_character"] for one in runs]
    timed = [one["seconds"] for one in runs if not one.get("accelerator")]
    seconds = mean(timed or [one["seconds"] for one in runs])
    joined = {"nats_per_character": mean(losses), "seconds": seconds, "losses": losses}
    return {**runs[0], **joined, "untimed": len(runs) - len(timed)}


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


def _fraction(contender: Contender, seconds: float, files: dict[str, Path], folder: Path) -> float:
    """The part of its setting's budget that *contender* can spend on this machine in *seconds*, by two short builds."""
    flops = contender.setting.flops
    guess = _GUESSED_FLOPS_PER_SECOND * processors() * max(_TRIAL_SECONDS, seconds / 60) / flops
    short, long = (_ours(contender, times * guess, files, folder) for times in (1, 3))
    speed = (long["flops"] - short["flops"]) / (long["seconds"] - short["seconds"])
    beside = max(0.0, short["seconds"] - short["flops"] / speed)  # what a build takes whatever its budget
    return float(speed * max(seconds / 2, seconds - beside) / flops)


def _ours(contender: Contender, fraction: float, files: dict[str, Path], folder: Path, seed: int = 0) -> dict[str, Any]:
    """Build *contender* with *fraction* of its budget, from nothing; measure it on the last tenth of the text."""
    from benchmarks.recipe_measure import window_losses

    setting = contender.setting
    plan = plan_of(recipe_named(contender.recipe), setting, contender.values, files, seed=seed, fraction=fraction)
    plan["data"] = {"train": [str(files["train"])], "valid_fraction": _VALID_SHARE, "test_fraction": 0.0}
    place = folder / f"ours-{contender.recipe}-{contender.shape}-{fraction:.3g}-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    write_text(place / "asked.toml", toml_of(plan))
    begun = time.monotonic()
    run = build(place / "asked.toml", place, workers=processors())
    wall = time.monotonic() - begun
    windows = window_losses(run.final, [str(files["valid"]), str(files["test"])], setting.block_size)
    graph = run.graph
    return {
        "nats_per_character": float(windows["nats"].sum() / windows["bytes"].sum()),
        "seconds": wall,
        "parameters": graph[graph.final].shape.parameters,
        "flops": graph.total_flops(graph.final),
        "accelerator": best_device().type != "cpu",
    }
