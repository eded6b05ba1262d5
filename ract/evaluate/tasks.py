"""Classifiers and translators side by side on the same labelled texts or pairs: what ``ract evaluate --task`` shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from ract.data.heldout import label_number
from ract.data.rows import labelled, pairs
from ract.errors import BadInput, nearest
from ract.evaluate.classification import evaluate_classifier
from ract.evaluate.language_modeling import evaluate_directory
from ract.evaluate.loading import load_for
from ract.evaluate.speed import measure_alone
from ract.evaluate.translation import evaluate_translator
from ract.model.task import task_of

Progress = Callable[[str, int, int], None]
Rows = list[tuple[str, str, str]]  # where it stands, text or source, label or target
FIELDS = {"classification": ("text", "label"), "translation": ("source", "target")}
_SPEED_TEXTS = 64


def evaluate(
    model: str | Path, files: str | Sequence[str], *, task: str | None = None, **options: Any
) -> dict[str, Any]:
    """The figures of the one *model* on *files* for *task*, by default the model's own: what ``ract evaluate`` shows,
    without speed.

    *options* are those of :func:`ract.evaluate.language_modeling.evaluate_directory` for "language-modeling", and of
    :func:`compare_on_rows` for "classification" and "translation". Raises BadInput as these do.
    """
    sources = [files] if isinstance(files, str) else list(files)
    task = task or task_of(model)
    if task == "language-modeling":
        return dict(evaluate_directory(Path(model), sources, **options))
    return compare_on_rows([Path(model)], task, sources, **{"speed": False, **options})[0]


def compare_on_rows(
    models: Sequence[Path],
    task: str,
    files: Sequence[str],
    *,
    fields: tuple[str, str] | None = None,
    label_names: Mapping[str, str] | None = None,
    languages: tuple[str, str] | None = None,
    limit_bytes: int | None = None,
    num_beams: int = 4,
    batch_size: int = 32,
    speed: bool = True,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One row for each of *models*: ``model`` (its path), what ``evaluate_classifier`` or ``evaluate_translator`` gives
    on the rows of *files*, the ``skipped`` blank ones, and with *speed* what :func:`ract.evaluate.speed.measure_texts`
    gives.

    *fields* name a row's text and label, or source and target; *label_names* the model's name for a label of the data;
    *languages* (source, target) are by default those in the models' configs. *limit_bytes* keeps only so much text,
    from all over the files. Raises BadInput as the readers do, for a label that a model lacks, for unknown languages.
    """
    if task not in FIELDS:
        raise BadInput(f'there is no task "{task}"', nearest(task, ("language-modeling", *FIELDS)))
    rows, skipped = _read(task, files, fields or FIELDS[task], limit_bytes)
    found: list[dict[str, Any]] = []
    for number, path in enumerate(models):
        if progress:
            progress(str(path), number, len(models))
        if task == "classification":
            quality = _classifier(path, rows, label_names or {}, batch_size, progress)
        else:
            quality = _translator(path, rows, languages, num_beams, batch_size, progress)
        row = {"model": str(path), "task": task, **quality, "skipped": skipped}
        if speed:
            texts = [text for _, text, _ in rows[:: -(-len(rows) // _SPEED_TEXTS)]]
            row |= measure_alone(path, task=task, texts=texts, batch_size=batch_size, num_beams=num_beams)
        found.append(row)
    if progress:
        progress("compare", len(models), len(models))
    return found


def _read(task: str, files: Sequence[str], fields: tuple[str, str], limit_bytes: int | None) -> tuple[Rows, int]:
    """The rows whose two parts are not blank, and how many were; of too many, every n-th."""
    every = list((labelled if task == "classification" else pairs)(files, *fields))
    rows = [row for row in every if row[1].strip() and row[2].strip()]
    if not rows:
        raise BadInput(f"{', '.join(files)}: there is nothing to evaluate on", "Give rows that are not blank")
    size = sum(len(row[1].encode("utf-8", errors="replace")) for row in rows)
    step = 1 if limit_bytes is None else max(1, -(-size // limit_bytes))
    return rows[::step], len(every) - len(rows)


def _classifier(
    path: Path, rows: Rows, names: Mapping[str, str], batch_size: int, progress: Progress | None
) -> dict[str, Any]:
    model, tokenizer = load_for("classification", path)
    labels = [class_number(label, model.config, where, names) for where, _, label in rows]
    texts = [text for _, text, _ in rows]
    return evaluate_classifier(model, tokenizer, texts, labels, batch_size=batch_size, progress=progress)


def class_number(label: str, config: PretrainedConfig, where: str, names: Mapping[str, str]) -> int:
    """The number of the class that the data calls *label* and the model, after *names*, something it has.

    A bare number is refused where the model's classes have names: which is which would be a guess.
    """
    named = names.get(label, label)
    own = [str(name) for name in config.id2label.values()]
    if named.isdecimal() and named not in own and not all(re.fullmatch(r"LABEL_\d+", name) for name in own):
        raise BadInput(
            f'{where} has the label "{label}", and the model calls its classes {", ".join(own)}',
            f"Say which is which: --label {label}=NAME",
        )
    return label_number(named, config, where)


def _translator(
    path: Path,
    rows: Rows,
    languages: tuple[str, str] | None,
    num_beams: int,
    batch_size: int,
    progress: Progress | None,
) -> dict[str, Any]:
    model, tokenizer = load_for("translation", path)
    known = tuple(getattr(model.config, f"{side}_language", None) or "" for side in ("source", "target"))
    source, target = languages or known
    if not target:
        raise BadInput(f"{path} does not say what language it translates into", "Say it, such as --languages en-de")
    return evaluate_translator(
        model,
        tokenizer,
        [source for _, source, _ in rows],
        [target for _, _, target in rows],
        source_language=source,
        target_language=target,
        num_beams=num_beams,
        batch_size=batch_size,
        progress=progress,
    )
