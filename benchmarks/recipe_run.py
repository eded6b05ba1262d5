"""One run of ``benchmarks/recipes.py``: its plan is built, its final node measured, everything recorded beside it.

A run lives in ``WORK/<corpus>/<setting>/<recipe>-<seed>``. All runs of a cell share one folder of nodes (their names
end in the hash of what goes into them), so what two recipes have in common is trained once, and charged to both.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.recipe_corpora import SPLITS, Cell, materialise
from benchmarks.recipe_measure import window_losses
from benchmarks.recipe_plans import plan_of, stage_of, toml_of
from benchmarks.recipe_records import folder_of, published
from benchmarks.recipe_trees import Values, recipe_named
from ract.checkpoint.directory import write_text
from ract.checkpoint.lineage import Lineage, read_lineage
from ract.errors import RactError, StoppedByParent
from ract.plan.graph import Graph
from ract.train.device import best_device, device_name
from ract.tree.build import Run, Watcher, build
from ract.tree.job import Job
from ract.tree.local import Event
from ract.tree.make import make

_PROGRESS_SECONDS = 2.0
RESULT, PROGRESS, PLAN, LOG = "result.json", "progress.json", "plan-asked.toml", "log.txt"


@dataclass(frozen=True)
class Spec:
    """One run: a recipe in a cell with a seed, at *fraction* of the budget.

    *trial* marks one of the tuning stage, *anew* one that is to be made here whatever is published.
    """

    cell: Cell
    recipe: str
    seed: int
    values: Values = field(default_factory=Values)
    fraction: float = 1.0
    trial: bool = False
    anew: bool = False

    @property
    def name(self) -> str:
        """``corpus/setting/recipe/seed``, the recipe with ``@fraction`` where it is not the whole budget."""
        part = "" if self.fraction == 1.0 else f"@{self.fraction:g}"
        tried = f"/{self.values.label()}" if self.trial else ""
        return f"{self.cell.name}/{self.recipe}{part}/{self.seed}{tried}"

    def folder(self, work: Path) -> Path:
        """Where the run lives below *work*."""
        *place, recipe, seed = self.name.split("/")[:4]
        last = f"{recipe}-{seed}" if not self.trial else f"tuning-{recipe}-{self.values.label()}"
        return work.joinpath(*place, last)

    def plan(self, files: Mapping[str, Path]) -> str:
        """The plan file of this run."""
        recipe, setting = recipe_named(self.recipe), self.cell.setting
        return toml_of(plan_of(recipe, setting, self.values, files, seed=self.seed, fraction=self.fraction))

    @property
    def identity(self) -> str:
        """The plan as it is on every machine: the texts by name, not by where they lie."""
        return self.plan({split: Path(f"{self.cell.corpus}/{split}") for split in SPLITS})

    @property
    def flops(self) -> float:
        """What the run may spend."""
        return self.cell.setting.flops * self.fraction * self.values.share


def result_of(spec: Spec, work: Path) -> Mapping[str, Any] | None:
    """The record of *spec* if it is finished, in *work* or as published, by the plan asked for now; else None."""
    file = spec.folder(work) / RESULT
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {} if spec.trial or spec.anew else published(folder_of(spec.cell.setting.scale)).get(spec.name, {})
    return found if found.get("plan") == spec.identity else None


def files_of(cell: Cell, data: Path | None, work: Path) -> dict[str, Path]:
    """The text files of *cell*: see :func:`benchmarks.recipe_corpora.materialise`."""
    return materialise(cell, data, (work / cell.name / "text").absolute())


def carry_out(spec: Spec, work: Path, data: Path | None) -> dict[str, Any]:
    """Build *spec* from where it stopped, measure its final node on valid and test, and write ``result.json``."""
    files = files_of(spec.cell, data, work)
    folder = spec.folder(work).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for shared in ("data", "nodes", "costs"):
        (folder.parent / shared).mkdir(exist_ok=True)
        if not (folder / shared).exists():
            (folder / shared).symlink_to(Path("..", shared), target_is_directory=True)
    text = spec.plan(files)
    write_text(folder / PLAN, text)
    progress = _Progress(folder)
    executor = _InThisProcess(folder / "costs", progress)
    run = build(folder / PLAN, folder, workers=1, watcher=progress, executor=lambda count, log: executor)
    nodes = {node.name: _node(run, node.name, folder / "costs") for node in run.graph}
    result = {
        "name": spec.name,
        "corpus": spec.cell.corpus,
        "setting": spec.cell.setting.name,
        "recipe": spec.recipe,
        "seed": spec.seed,
        "fraction": spec.fraction,
        "values": asdict(spec.values),
        "budget": spec.flops,
        "flops": run.graph.total_flops(run.graph.final),
        "parameters": run.graph[run.graph.final].shape.parameters,
        "train_tokens": _train_tokens(run),
        "final": run.graph.final,
        "device": device_name(),
        "accelerator": best_device().type != "cpu",
        "nodes": nodes,
        "plan": spec.identity,
        **_losses(spec, run, files),
    }
    write_text(folder / RESULT, json.dumps(result, indent=1) + "\n")
    (folder / PROGRESS).unlink(missing_ok=True)
    return result


def _train_tokens(run: Run) -> int:
    from ract.data.tokens import open_corpus

    return len(open_corpus(next((run.path / "data").glob("corpus-*"))).tokens["train"])


def _node(run: Run, name: str, costs: Path) -> dict[str, Any]:
    node, lineage = run.graph[name], read_lineage(run.directories[name])
    assert lineage is not None
    return {
        "method": node.method,
        "stage": stage_of(node),
        "parents": [*node.parents, *node.teachers],
        "parameters": node.shape.parameters,
        "tokens": node.train.tokens if node.train else 0,
        "flops": run.graph.own_flops(name),
        "seconds": lineage.cost.seconds,
        "processor_seconds": _processor_seconds(lineage, costs / f"{lineage.node[:12]}.json"),
        "best_step": lineage.metrics_after.get("best_step", 0),
    }


def _processor_seconds(lineage: Lineage, file: Path) -> float:
    """Processor seconds of the whole node: of a resumed one those of all its parts, at the rate of the last part."""
    if not file.is_file():
        return lineage.cost.seconds
    cost = json.loads(file.read_text(encoding="utf-8"))
    return max(lineage.cost.seconds, cost["wall"]) * cost["processor"] / cost["wall"]


def _losses(spec: Spec, run: Run, files: Mapping[str, Path]) -> dict[str, Any]:
    """``losses``: by node and split, nats a token and bits a byte. ``test_nats``: the final node's on each test window.

    Measured are the final node and, where it was distilled, its teacher and the first leaf. A trial of the tuning
    stage never sees the test text.
    """
    graph = run.graph
    names = {"final": graph.final}
    if graph[graph.final].method == "distill":
        names |= {"teacher": graph[graph.final].teachers[0], "leaf": next(n.name for n in graph if n.method == "leaf")}
    losses: dict[str, dict[str, dict[str, float]]] = {}
    by_window: dict[str, list[float]] = {}
    for role, name in names.items():
        losses[role] = {}
        for split in ("valid",) if spec.trial else ("valid", "test"):
            windows = window_losses(run.directories[name], [str(files[split])])
            nats, tokens, size = (windows[key].sum() for key in ("nats", "tokens", "bytes"))
            losses[role][split] = {"nats_per_token": nats / tokens, "bits_per_byte": nats / np.log(2) / size}
            if (role, split) == ("final", "test"):
                by_window["test_nats"] = [round(float(one), 2) for one in windows["nats"]]
    return {"losses": losses, **by_window}


class _InThisProcess:
    """An executor without processes of its own: a run has a processor to itself, an accelerator many runs at a time.

    Notes the processor seconds of each node in *costs*: on a busy machine they are what a quiet one would need.
    Raises StoppedByParent once the process that started this one is gone.
    """

    def __init__(self, costs: Path, progress: _Progress) -> None:
        self.costs, self.progress = costs, progress
        self._job: Job | None = None
        self._parent = os.getppid()

    @property
    def free(self) -> int:
        """One node at a time."""
        return 0 if self._job else 1

    def submit(self, job: Job) -> None:
        """Keep *job* for :meth:`wait`."""
        self._job = job

    def wait(self) -> Event:
        """Make the node that was submitted."""
        assert self._job is not None
        job, self._job = self._job, None
        processor, wall = time.process_time(), time.monotonic()
        make(job, lambda what, done, total: self._report(job.node.name, what, done, total))
        cost = {"processor": time.process_time() - processor, "wall": time.monotonic() - wall}
        write_text(self.costs / f"{job.key[:12]}.json", json.dumps(cost))
        return Event("finished", job.node.name)

    def close(self) -> None:
        """Nothing is left behind."""

    def _report(self, node: str, what: str, done: int, total: int) -> None:
        if os.getppid() != self._parent:
            raise StoppedByParent("the matrix that ordered this run is gone")
        self.progress.node_progress(node, what, done, total)


class _Progress(Watcher):
    """Keeps ``progress.json`` in *folder*: FLOPs to do and done, and the node under way."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / PROGRESS
        self.flops: dict[str, float] = {}
        self.done = self.total = self.written = 0.0
        self.begun = time.monotonic()

    def started(self, graph: Graph, to_do: Mapping[str, float], finished: int) -> None:
        """See :class:`Watcher`."""
        self.flops, self.total = dict(to_do), sum(to_do.values())
        self._write("", 0.0)

    def node_progress(self, name: str, what: str, done: int, total: int) -> None:
        """See :class:`Watcher`."""
        if what == "train" and time.monotonic() - self.written > _PROGRESS_SECONDS:
            self._write(name, self.flops[name] * done / max(1, total))

    def node_finished(self, name: str) -> None:
        """See :class:`Watcher`."""
        self.done += self.flops[name]
        self._write("", 0.0)

    def _write(self, node: str, part: float) -> None:
        self.written = time.monotonic()
        state = {"node": node, "done": self.done + part, "total": self.total, "pid": os.getpid()}
        write_text(self.file, json.dumps(state | {"seconds": self.written - self.begun}))


def serve(spec: Spec, work: Path, data: Path | None) -> int:
    """Carry out *spec* in a process of the scheduler's; what it prints goes to the run's log.

    Returns an exit code: a failure is one run's, and the process goes on to the next.
    """
    torch.set_num_threads(1)
    with (spec.folder(work) / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            carry_out(spec, work, data)
        except RactError as error:
            print(error, file=log)
            return error.exit_code
        except Exception:
            traceback.print_exc(file=log)
            return 1
    return 0


def with_values(spec: Spec, values: Values) -> Spec:
    """*spec* with tuned values."""
    return replace(spec, values=values)
