"""``ract compress``: prune, heal, distil, quantize as asked, or search among them; measure, refuse, record, publish."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from ract.checkpoint.directory import publish, write_lineage
from ract.checkpoint.lineage import digest
from ract.compress.distill import Lesson, Teacher, student_shape
from ract.compress.judge import Judge, Limits, Trial, held_out
from ract.compress.kept import kept_beside
from ract.compress.prune import Cut
from ract.compress.search import search
from ract.compress.workshop import Change, Made, Workshop
from ract.data.tokens import Progress
from ract.errors import BadInput, RactError, nearest
from ract.export.source import Source, load_source
from ract.plan.quantities import parse_count, parse_size
from ract.runtime.locate import model_at
from ract.runtime.manifest import Engine, Precision

_NONE = "none"


@dataclass(frozen=True)
class Options:
    """What to do to the model.

    Steps: *prune_blocks* of the whole model, a share of every block's *prune_neurons* and *prune_heads* (by key-value
    groups), or a student instead: *student_parameters*, or *student_hidden* wide and *student_layers* deep; then
    *quantize* to int8 or int4. With *train* text a pruned model is healed; a student needs it. Both learn *tokens* of
    it at the rate *lr*, taught by the original. Counts and sizes may be written "2M" and "8MB".

    Limits: *max_loss_increase* as a share of the original's held-out loss, *target_size* in bytes, *max_latency_ms*,
    *max_memory_mb* of the running process. Limits without steps are searched for. *format* is the export format of the
    result, "none" for a model directory; default onnx where it is quantized or searched for. Exports are measured with
    so many *threads* of one operation: one is what they are run with where nothing else is said.
    """

    quantize: Precision | None = None
    prune_blocks: int = 0
    prune_neurons: float = 0.0
    prune_heads: float = 0.0
    student_parameters: int | str | None = None
    student_hidden: int | None = None
    student_layers: int | None = None
    train: Sequence[str] = ()
    tokens: int | str | None = None
    lr: float | None = None
    max_loss_increase: float | None = None
    target_size: int | str | None = None
    max_latency_ms: float | None = None
    max_memory_mb: float | None = None
    format: Engine | str | None = None
    seed: int = 0
    threads: int = 1

    @property
    def cut(self) -> Cut:
        """What is pruned."""
        return Cut(self.prune_blocks, self.prune_neurons, self.prune_heads)

    @property
    def has_student(self) -> bool:
        """Whether a student takes the model's place."""
        return any(v is not None for v in (self.student_parameters, self.student_hidden, self.student_layers))

    @property
    def searches(self) -> bool:
        """Whether only limits are given."""
        return not (self.cut or self.has_student or self.quantize or self.format)

    @property
    def form(self) -> str:
        """The format of the result, or none."""
        return self.format or ("onnx" if self.quantize or self.searches else _NONE)

    @property
    def limits(self) -> Limits:
        """The limits. Raises BadInput for one that is not a positive number."""
        for name in ("target_size", "max_latency_ms", "max_memory_mb", "max_loss_increase"):
            value = getattr(self, name)
            least = 0 if name == "max_loss_increase" else 1e-9
            if isinstance(value, (int, float)) and not value >= least:
                raise BadInput(f"--{name.replace('_', '-')} is {value}", "Give a number above 0")
        size = _number(parse_size, self.target_size, "target-size")
        memory = round(self.max_memory_mb * 1e6) if self.max_memory_mb is not None else None
        return Limits(size, self.max_latency_ms, memory, self.max_loss_increase)

    def check(self) -> None:
        """Raise BadInput where the options contradict each other or say nothing."""
        limits = self.limits
        changed = bool(self.cut) or self.has_student
        shares_ok = all(0 <= share < 1 for share in (self.prune_neurons, self.prune_heads))
        known = (*get_args(Engine), _NONE)
        steps = "--quantize int8, --prune-blocks 1, --prune-neurons 25%"
        cost = self.max_latency_ms is not None or self.max_memory_mb is not None
        wrong: list[tuple[Any, str, str]] = [
            (self.searches and limits == Limits(), "nothing was asked for", f"Give steps ({steps}, …) or limits"),
            (self.form not in known, f'there is no format "{self.form}"', nearest(self.form, known)),
            (
                self.quantize not in (None, "int8", "int4"),
                f'there is no precision "{self.quantize}" to quantize to',
                "Known: int8, int4",
            ),
            (self.threads < 1, f"threads = {self.threads} is out of range", "Give at least 1"),
            (self.prune_blocks < 0 or not shares_ok, "a share or number to prune is out of range", f"As in {steps}"),
            (self.cut and self.has_student, "a student is not pruned", "Ask for one of the two"),
            (self.has_student and not self.train, "a student learns from text", "Give it: --train FILE"),
            (
                self.train and not (changed or self.searches),
                "there is nothing to train: no part is pruned and no student is asked for",
                "Leave --train out, or prune",
            ),
            (not self.train and (self.tokens or self.lr), "tokens and lr are for training", "Give --train FILE"),
            (self.form == _NONE and not changed, "the model would stay as it is", f"Give steps: {steps}, …"),
            (self.form == _NONE and self.quantize, "only an export is quantized", "Leave --format none out"),
            (self.form == _NONE and cost, "latency and memory are those of an export", "Give --format onnx"),
        ]
        for applies, problem, remedy in wrong:
            if applies:
                raise BadInput(problem, remedy)


@dataclass(frozen=True)
class Compressed:
    """The result: a model directory or an export at *path*, its figures, and all that was tried, the original first."""

    path: Path
    trial: Trial
    trials: list[Trial] = field(default_factory=list)


def compress(
    model_dir: str | Path,
    out: str | Path,
    *,
    data: Sequence[str],
    force: bool = False,
    watch: Callable[[Trial], None] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Compressed:
    """Make the model at *model_dir* (or the final node of a run) smaller, into *out*, as :class:`Options` say.

    Losses are measured on the held-out *data*: text, labelled rows, or pairs. What is chosen is chosen on *train*, or
    where there is none on one half of *data*, and the other half is what is reported. *watch* is told of everything
    that was measured, the original first.

    What is made on the way is kept beside *out* until there is a result: cut short, the same call goes on.

    Raises BadInput for options that make no sense, an architecture that does not allow a step, and an *out* that exists
    (without *force*); RactError where a limit is broken or nothing fits: nothing is written then.
    """
    unknown = sorted(set(options) - {f.name for f in fields(Options)})
    if unknown:
        raise BadInput(f'there is no option "{unknown[0]}"', nearest(unknown[0], {f.name for f in fields(Options)}))
    asked = Options(**options)
    asked.check()
    if not data:
        raise BadInput("no held-out data to measure on", "Give it: --data FILE")
    source_dir, end = model_at(model_dir).resolve(), Path(out).resolve()
    if end == source_dir or end in source_dir.parents or source_dir in end.parents:
        raise BadInput(f"the output {out} and the model {model_dir} are one directory", "Choose another output folder")
    if end.exists() and not force:  # before what is kept on the way to it is touched
        raise BadInput(f"{out} exists already", "Choose another output folder or give --force to replace it")
    trials: list[Trial] = []

    def seen(trial: Trial) -> None:
        trials.append(trial)
        if watch is not None:
            watch(trial)

    with kept_beside(Path(out)) as work, publish(Path(out), force=force) as staging:
        source = load_source(model_dir)
        shop = _workshop(source, asked, data, work, progress)
        seen(shop.judge.original)
        made = search(shop, seen) if asked.searches else _as_asked(shop, asked, seen)
        for file in made.path.iterdir():
            if file.is_file():
                shutil.copyfile(file, staging / file.name)
        write_lineage(staging, made.lineage.model_copy(update={"name": Path(out).name, "seed": asked.seed}))
    return Compressed(Path(out), made.trial, trials)


def _workshop(source: Source, asked: Options, data: Sequence[str], work: Path, progress: Progress | None) -> Workshop:
    choose = bool(asked.cut) or asked.searches
    calibration, reported = held_out(source, data, asked.train, choose=choose)
    teacher = None
    if asked.train:
        tokens = _number(parse_count, asked.tokens, "tokens")
        lesson = Lesson(tuple(asked.train), tokens, asked.lr, asked.seed)
        teacher = Teacher(source, lesson, work / "data", progress)
    judge = Judge(source, reported, asked.limits, asked.threads)
    form: Any = "onnx" if asked.form == _NONE else asked.form
    return Workshop(source, calibration, judge, work, digest(list(map(str, data))), form, teacher, progress)


def _as_asked(shop: Workshop, asked: Options, seen: Callable[[Trial], None]) -> Made:
    """The steps, each measured; RactError after the first that breaks a limit."""
    change, made = _change(shop.source, asked), None
    if change:
        made = shop.model(change, final=asked.form == _NONE)
        _accept(made, seen)
    if asked.form != _NONE:
        made = shop.export(change, asked.quantize or "fp32")
        _accept(made, seen)
    assert made is not None
    return made


def _accept(made: Made, seen: Callable[[Trial], None]) -> None:
    seen(made.trial)
    if made.trial.breaks:
        raise RactError(f"refused: {made.trial.name}: {', '.join(made.trial.breaks)}", "Allow more, or ask for less")


def _change(source: Source, asked: Options) -> Change:
    if not asked.has_student:
        return Change(asked.cut)
    parameters = _number(parse_count, asked.student_parameters, "student-parameters")
    shape = student_shape(source, parameters=parameters, hidden_size=asked.student_hidden, layers=asked.student_layers)
    return Change(student=shape)


def _number(parse: Callable[[Any], int], value: int | str | None, name: str) -> int | None:
    try:
        return None if value is None else parse(value)
    except ValueError as error:
        raise BadInput(f'{name} "{value}" {error}', "Write it like 2M or 8MB") from error
