"""Makes what is to be tried: a smaller model once for all its precisions, and the exports of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ract.checkpoint.lineage import Cost, Lineage, Parent, content_hash, read_lineage
from ract.compress.distill import Teacher
from ract.compress.judge import Judge, Trial
from ract.compress.kept import digest_of, made_once
from ract.compress.prune import Cut, expected_parameters, prune
from ract.cost import BYTES_PER_PARAMETER, Costs
from ract.data.heldout import Batch
from ract.export.export import export_source
from ract.export.source import Source, load_source
from ract.export.verify import Sample
from ract.plan.quantities import show_count
from ract.runtime.manifest import Engine, Precision

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Change:
    """What becomes of the original before it is exported: parts of it go (*cut*), or a *student* takes its place."""

    cut: Cut = field(default_factory=Cut)
    student: Costs | None = None

    def __bool__(self) -> bool:
        return bool(self.cut) or self.student is not None

    def __str__(self) -> str:
        if self.student is not None:
            return f"student of {show_count(self.student.parameters)} parameters"
        return str(self.cut) or "original"


@dataclass(frozen=True)
class Made:
    """A model directory or an export at *path*, with its figures and the record of how it was made."""

    path: Path
    trial: Trial
    lineage: Lineage


@dataclass
class Workshop:
    """Makes models and exports below *work*: the latter in the format *form*, noting that they were measured on *data*.

    What is pruned is chosen on *calibration* batches; with a *teacher*, pruned models are healed. What is in *work*
    already, made from the same, is not made again.
    """

    source: Source
    calibration: Sequence[Batch]
    judge: Judge
    work: Path
    data: str
    form: Engine = "onnx"
    teacher: Teacher | None = None
    progress: Progress | None = None
    _bytes_per_parameter: dict[str, float] = field(default_factory=dict)

    def model(self, change: Change, *, final: bool = True) -> Made:
        """The model directory after *change*; see :meth:`ract.compress.judge.Judge.model` for *final*."""
        path, _, _ = self._changed(change)
        trial = self.judge.model(self.name(change), path, final=final)
        return Made(path, trial, self._lineage(change, trial))

    def export(self, change: Change, precision: Precision) -> Made:
        """The export in *precision* of the model after *change*."""
        path, _, _ = self._changed(change)

        def make(folder: Path) -> dict[str, Any]:
            given = Sample(self.judge.reported, held_out=True)
            made = export_source(load_source(path), folder / "export", self.form, precision, given, data=self.data)
            return asdict(self.judge.export(self.name(change, precision), made))

        key = [self._model_key(change), self.form, precision, self._reported, self.data, self.judge.threads]
        place, record = made_once(self.work, key, make)
        out, trial = place / "export", self.judge.held(Trial(**record))
        if not change:
            self._bytes_per_parameter[precision] = (trial.size_bytes or 0) / self.parameters(change)
        return Made(out, trial, self._lineage(change, trial, precision))

    def hopeless(self, change: Change, precision: Precision) -> Trial | None:
        """The trial of an export that is too large by its shape alone, before anything is made; else None."""
        each = self._bytes_per_parameter.get(precision, BYTES_PER_PARAMETER[precision])
        return self.judge.estimate(self.name(change, precision), each * self.parameters(change))

    def parameters(self, change: Change) -> int:
        """About how many parameters the model has after *change*; BadInput where the architecture does not allow it."""
        if change.student is not None:
            return change.student.parameters
        return expected_parameters(self.source.directory, change.cut)

    def name(self, change: Change, precision: str = "") -> str:
        """What a reader calls it."""
        healed = ", healed" if change.cut and self.teacher is not None else ""
        return f"{change}{healed}" + f", {precision}" * bool(precision)

    def _changed(self, change: Change) -> tuple[Path, dict[str, Any], Cost]:
        """The model directory after *change*, what was left out, and what it cost; made once."""
        if not change:
            return self.source.directory, {}, Cost()

        def make(folder: Path) -> dict[str, Any]:
            notes: dict[str, Any] = {}
            cost, path = Cost(), folder / "model"
            if change.student is not None:
                assert self.teacher is not None
                cost = self.teacher.student(change.student, path)  # type: ignore[arg-type]
            else:
                pruned, notes = prune(self.source.directory, change.cut, self.calibration, folder, self.progress)
                if self.teacher is None:
                    path = pruned
                else:
                    cost = self.teacher.heal(pruned, path)
            return {"path": str(path.relative_to(folder)), "notes": notes, "cost": cost.model_dump()}

        place, record = made_once(self.work, self._model_key(change), make)
        return place / record["path"], record["notes"], Cost(**record["cost"])

    def _model_key(self, change: Change) -> Any:
        """All that the model after *change* follows from."""
        student = change.student.as_dict() if change.student is not None else None
        lesson = self.teacher.key if change and self.teacher is not None else None
        return [content_hash(self.source.directory), asdict(change.cut), student, self._chosen_on, lesson]

    @cached_property
    def _chosen_on(self) -> str:
        return digest_of(self.calibration)

    @cached_property
    def _reported(self) -> str:
        return digest_of(self.judge.reported)

    def _lineage(self, change: Change, trial: Trial, precision: str = "") -> Lineage:
        _, notes, cost = self._changed(change)
        source, parent = self.source.directory, read_lineage(self.source.directory)
        before = parent.cost.total_flops if parent else 0.0
        method = "distill" if change.student is not None else "prune" if change else "quantize"
        plan: dict[str, Any] = {"gone": notes} if change.cut else {}
        if change.cut:
            plan["cut"] = asdict(change.cut)
        if change.student is not None:
            plan["student"] = change.student.as_dict()
        if change and self.teacher is not None:
            plan["train"] = list(self.teacher.lesson.files)
        if precision:
            plan |= {"format": self.form, "precision": precision}
        return Lineage(
            method=method,
            level=parent.level if parent else 0,
            parents=[Parent(name=source.name, content=content_hash(source), path=str(source))],
            plan=plan,
            cost=cost.model_copy(update={"total_flops": before + cost.flops}),
            metrics_before=figures(self.judge.original),
            metrics_after=figures(trial),
        )


def figures(trial: Trial) -> dict[str, Any]:
    """What was measured of *trial*, for a record."""
    kept = ("loss", "accuracy", "bleu", "size_bytes", "latency_ms", "memory_bytes")
    return {key: getattr(trial, key) for key in kept if getattr(trial, key) is not None}
