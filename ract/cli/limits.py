"""The options that say what a model may take, and the choice among the nodes of a run that follows from them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ract.cli.models import size_of
from ract.errors import BadInput, needs_extra
from ract.runtime.choose import Limits, exports_in

MaxSize = Annotated[
    str | None, typer.Option("--max-size", help="Of a run: the best node and precision of at most this size, e.g. 8MB.")
]
MaxLatency = Annotated[
    float | None,
    typer.Option("--max-latency-ms", help="… that takes at most so long here: a token, a text or a sentence."),
]
MaxMemory = Annotated[
    float | None, typer.Option("--max-memory-mb", help="… whose whole process takes at most so much memory here.")
]
Adaptive = Annotated[
    bool, typer.Option("--adaptive", help="Go on with a smaller node when memory gets short or the machine busy.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Of an exported model. Default: what was the fastest here, or 1.")
]


def runtime_options(
    model: Path,
    max_size: str | None,
    max_latency_ms: float | None,
    max_memory_mb: float | None,
    adaptive: bool,
    threads: int | None,
) -> dict[str, Any]:
    """What :func:`ract.runtime.open.open_engine` takes. A run that has no exports gets them first, said on standard
    error: they are made once.
    """
    for name, value in (("--max-latency-ms", max_latency_ms), ("--max-memory-mb", max_memory_mb)):
        if value is not None and not value > 0:
            raise BadInput(f"{name} {value} leaves no room for any model", "Give a number above 0")
    limits = Limits(
        size_of(max_size, "--max-size") if max_size else None,
        max_latency_ms,
        max_memory_mb * 1e6 if max_memory_mb else None,
    )
    if (limits or adaptive) and (model / "report.json").is_file() and not exports_in(model):
        with needs_extra("Exporting the nodes of a run", "train"):
            from ract.tree.forms import export_tree
        print(f"exporting the nodes of {model}, once", file=sys.stderr)
        export_tree(model, report=say_progress)
    return {"limits": limits, "adaptive": adaptive, "threads": threads, "notice": _notice}


def say_progress(name: str, done: int, total: int) -> None:
    """One line on standard error for each export."""
    if done < total:
        print(f"  {done + 1} of {total}: {name}", file=sys.stderr)


def _notice(text: str) -> None:
    print(f"ract: {text}", file=sys.stderr)
