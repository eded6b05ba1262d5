"""The command that measures models side by side: evaluate."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ract.cli.app import Json, app, print_json, print_table
from ract.cli.models import Data, Models, Task, size_of
from ract.errors import BadInput, nearest, needs_extra
from ract.plan.quantities import show_count, show_size


@app.command("evaluate")
def evaluate_command(
    models: Models,
    data: Data = None,
    task: Task = None,
    fields: Annotated[
        str | None, typer.Option("--fields", help="A row's two fields, by default text,label or source,target.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="DATA=MODEL", help="What the model calls a label of the data. Repeatable."),
    ] = None,
    languages: Annotated[
        str | None, typer.Option("--languages", help="Source and target, such as en-de; by default the model's own.")
    ] = None,
    num_beams: Annotated[int, typer.Option("--beams", min=1, help="Width of a translation's beam search.")] = 4,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts or sentences at a time.")] = 32,
    limit: Annotated[
        str | None, typer.Option("--limit", metavar="SIZE", help="Only so much of the text, such as 200kB.")
    ] = None,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Measure speed and memory too.")] = True,
    as_json: Json = False,
) -> None:
    """Quality, size and speed of models, side by side: language models, classifiers or translators."""
    if not data:
        raise BadInput("there is no text to evaluate on", "Give --data FILE")
    if task is not None and task not in _QUALITY:
        raise BadInput(f'there is no task "{task}"', nearest(task, _QUALITY))
    with needs_extra("ract evaluate", "train"):
        from ract.evaluate.speed import compare
        from ract.evaluate.tasks import compare_on_rows
        from ract.model.task import task_of
        from ract.runtime.locate import model_at
    from ract.cli.progress import one_bar

    paths, most = [model_at(path) for path in models], size_of(limit, "--limit") if limit else None
    task = task or task_of(paths[0])
    with one_bar() as report:
        if task == "language-modeling":
            rows = compare(paths, data, limit_bytes=most, speed=speed, progress=report)
        else:
            rows = compare_on_rows(
                paths,
                task,
                data,
                fields=_two(fields, ",", "--fields"),
                label_names=dict(_label(pair) for pair in label or []),
                languages=_two(languages, "-", "--languages"),
                limit_bytes=most,
                num_beams=num_beams,
                batch_size=batch_size,
                speed=speed,
                progress=report,
            )
    if as_json:
        print_json(rows)
        return
    columns = {"model": [str(row["model"]) for row in rows], **_QUALITY[task](rows), **(_speed(rows) if speed else {})}
    print_table(list(columns), [list(cells) for cells in zip(*columns.values(), strict=True)], left=["model"])
    if len(rows) == 1:
        _print_details(rows[0])


Rows = list[dict[str, Any]]
Columns = dict[str, list[str]]


def _column(rows: Rows, key: str, form: str) -> list[str]:
    return [format(row[key], form) for row in rows]


def _language_model(rows: Rows) -> Columns:
    return {
        "bits/byte": _column(rows, "bits_per_byte", ".4f"),
        "nats/token": _column(rows, "nats_per_token", ".4f"),
        "perplexity": _column(rows, "perplexity", ".2f"),
    }


def _classifier(rows: Rows) -> Columns:
    return {
        "texts": _column(rows, "examples", "d"),
        "accuracy": _column(rows, "accuracy", ".1%"),
        "macro-F1": _column(rows, "macro_f1", ".1%"),
        "nats": _column(rows, "nats", ".4f"),
        "ECE": _column(rows, "ece", ".1%"),
        "cut": _column(rows, "truncated", "d"),
    }


def _translator(rows: Rows) -> Columns:
    return {
        "sentences": _column(rows, "examples", "d"),
        "BLEU": _column(rows, "bleu", ".2f"),
        "chrF": _column(rows, "chrf", ".2f"),
        "nats/token": _column(rows, "nats_per_token", ".4f"),
        "length": _column(rows, "length_ratio", ".2f"),
        "empty": _column(rows, "empty", "d"),
        "copied": _column(rows, "copies", "d"),
        "loops": _column(rows, "repeated", "d"),
    }


_QUALITY = {"language-modeling": _language_model, "classification": _classifier, "translation": _translator}


def _speed(rows: Rows) -> Columns:
    columns: Columns = {
        "parameters": [show_count(row["parameters"]) for row in rows],
        "size": [show_size(row["size_bytes"]) for row in rows],
    }
    for key, name, form in (
        ("prefill_tokens_per_second", "prompt tokens/s", ".0f"),
        ("generation_tokens_per_second", "new tokens/s", ".0f"),
        ("latency_ms", "ms/text", ".1f"),
        ("texts_per_second", "texts/s", ".1f"),
    ):
        if key in rows[0]:
            columns[name] = _column(rows, key, form)
    return columns | {"memory": [show_size(row["peak_memory_bytes"]) for row in rows]}


def _print_details(row: dict[str, Any]) -> None:
    """Of one model by itself: the classes, or the first translations and what BLEU was computed with."""
    if "per_class" in row:
        names = [one["label"] for one in row["per_class"]]
        shares = [
            [one["label"], str(one["support"]), *(f"{one[key]:.1%}" for key in ("precision", "recall", "f1"))]
            for one in row["per_class"]
        ]
        print_table(["class", "texts", "precision", "recall", "F1"], shares, left=["class"])
        if len(names) <= 20:
            cells = [[name, *map(str, counts)] for name, counts in zip(names, row["confusion"], strict=True)]
            print_table(["true ↓ predicted →", *names], cells, left=["true ↓ predicted →"])
    for shown in row.get("outputs", [])[:3]:
        print(f"source:    {shown['source']}\nreference: {shown['reference']}\noutput:    {shown['output']}\n")
    if "bleu_signature" in row:
        print(f"BLEU {row['bleu_signature']}\nchrF {row['chrf_signature']}")


def _two(text: str | None, separator: str, option: str) -> tuple[str, str] | None:
    if text is None:
        return None
    first, found, second = (part.strip() for part in text.partition(separator))
    if not (first and found and second):
        raise BadInput(f'{option} "{text}" is not two names', f"Write it like a{separator}b")
    return first, second


def _label(pair: str) -> tuple[str, str]:
    given, separator, name = (part.strip() for part in pair.partition("="))
    if not (given and separator and name):
        raise BadInput(f'--label "{pair}" is not DATA=MODEL', "Write it like 1=positive")
    return given, name
