"""The command that makes one model smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ract.cli.app import Force, Json, app, print_json, print_table
from ract.errors import BadInput, needs_extra
from ract.plan.quantities import show_size


@app.command("compress")
def compress_command(
    model: Annotated[
        Path, typer.Argument(metavar="DIR", help="A model directory, or a finished run (its final model).")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The model directory or export to write.")],
    data: Annotated[
        list[str], typer.Option("--data", metavar="SOURCE", help="Held-out data to measure on. Repeatable.")
    ],
    quantize: Annotated[str | None, typer.Option("--quantize", help="Export in int8 or int4.")] = None,
    prune_blocks: Annotated[int, typer.Option("--prune-blocks", help="Leave out so many blocks.")] = 0,
    prune_neurons: Annotated[
        str, typer.Option("--prune-neurons", metavar="SHARE", help="Leave out so many of every feed-forward, as 25%.")
    ] = "0",
    prune_heads: Annotated[
        str, typer.Option("--prune-heads", metavar="SHARE", help="Leave out so many key-value groups, as 25%.")
    ] = "0",
    student_parameters: Annotated[
        str | None, typer.Option("--student-parameters", metavar="N", help="Teach a fresh model of this size, as 1M.")
    ] = None,
    student_hidden: Annotated[int | None, typer.Option("--student-hidden", help="… of this width.")] = None,
    student_layers: Annotated[int | None, typer.Option("--student-layers", help="… of so many blocks.")] = None,
    train: Annotated[
        list[str] | None,
        typer.Option("--train", metavar="SOURCE", help="Data to heal on or teach with, and to choose on. Repeatable."),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="N", help="How long to train, as 2M. Default: by size and data.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    max_loss_increase: Annotated[
        str | None, typer.Option("--max-loss-increase", metavar="SHARE", help="Refuse what loses more, as 1%.")
    ] = None,
    target_size: Annotated[
        str | None, typer.Option("--target-size", metavar="SIZE", help="At most so large, as 8MB.")
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option("--max-latency-ms", help="At most so long here: a token, a text or a sentence.")
    ] = None,
    max_memory_mb: Annotated[
        float | None, typer.Option("--max-memory-mb", help="At most so much memory here for the whole process.")
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="Latency and memory are measured with so many; 1 is how it is run.")
    ] = 1,
    form: Annotated[
        str | None,
        typer.Option("--format", help="Of the result: onnx, another of ract export, or none: a model directory."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of students and of the order of the text.")] = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a model smaller by steps, or by a search within limits; measured on held-out data before and after."""
    with needs_extra("ract compress", "train"):
        from ract.compress.compress import compress
        from ract.compress.workshop import figures
    from ract.cli.progress import one_bar

    trials: list[Any] = []
    options = {
        "quantize": quantize,
        "prune_blocks": prune_blocks,
        "prune_neurons": _share(prune_neurons, "--prune-neurons"),
        "prune_heads": _share(prune_heads, "--prune-heads"),
        "student_parameters": student_parameters,
        "student_hidden": student_hidden,
        "student_layers": student_layers,
        "train": train or (),
        "tokens": tokens,
        "lr": lr,
        "max_loss_increase": _share(max_loss_increase, "--max-loss-increase"),
        "target_size": target_size,
        "max_latency_ms": max_latency_ms,
        "max_memory_mb": max_memory_mb,
        "format": form,
        "seed": seed,
        "threads": threads,
    }
    try:
        with one_bar() as report:
            made = compress(model, out, data=data, force=force, watch=trials.append, progress=report, **options)
    except Exception:
        if len(trials) > 1 and not as_json:
            _print_trials(trials)
        raise
    if as_json:
        tried = [{"name": t.name, **figures(t), "fits": t.fits, "breaks": t.breaks} for t in trials]
        print_json({"path": str(made.path), "chosen": made.trial.name, **figures(made.trial), "tried": tried})
        return
    _print_trials(trials)
    print(f"{made.path}: {made.trial.name}")


def _print_trials(trials: list[Any]) -> None:
    original = trials[0].loss
    accuracy, bleu = (any(getattr(one, name) is not None for one in trials) for name in ("accuracy", "bleu"))
    rows = [
        [
            trial.name,
            ("" if trial.made else "~") + show_size(trial.size_bytes) if trial.size_bytes else "",
            f"{trial.latency_ms:.2f}" if trial.latency_ms is not None else "",
            show_size(trial.memory_bytes) if trial.memory_bytes is not None else "",
            f"{trial.loss:.4f}" if trial.loss is not None else "",
            f"{trial.loss / original - 1:+.1%}" if trial.loss is not None else "",
            *([f"{trial.accuracy:.1%}" if trial.accuracy is not None else ""] if accuracy else []),
            *([f"{trial.bleu:.1f}" if trial.bleu is not None else ""] if bleu else []),
            "" if trial is trials[0] else ", ".join(trial.breaks) or "yes",
        ]
        for trial in trials
    ]
    quality = [*(["accuracy"] if accuracy else []), *(["BLEU"] if bleu else [])]
    columns = ["tried", "size", "ms", "memory", "loss", "change", *quality, "fits"]
    print_table(columns, rows, left=["tried", "fits"])


def _share(text: str | None, option: str) -> float | None:
    """``25%`` or ``0.25`` as 0.25; BadInput, naming *option*, when it is neither."""
    if text is None:
        return None
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise BadInput(f'{option} "{text}" is not a share', "Write it like 25% or 0.25") from error
