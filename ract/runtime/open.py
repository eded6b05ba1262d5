"""From a path to what executes the model there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ract.errors import BadInput, needs_extra
from ract.runtime.choose import Form, Limits, choose, exports_in, forms_of
from ract.runtime.locate import model_at
from ract.runtime.manifest import is_exported


def open_engine(
    path: str | Path,
    kind: str,
    verb: str,
    *,
    threads: int | None = None,
    device: str = "cpu",
    limits: Limits | None = None,
    adaptive: bool = False,
    notice: Callable[[str], None] | None = None,
) -> Any:
    """The engine for *path*: that of its format for an exported model, torch for a model directory or a run (its final
    node). Of a folder of exported models of one tree, or of a run that has them and is given *limits*, the best one
    that keeps within *limits*; with *adaptive* the next smaller one goes on where it becomes too slow or memory short.

    *kind* is "Decoder", "Classifier" or "Translator", *verb* the command that asks; *threads* of one operation (None:
    of a tree's model the number that was the fastest here, else 1); *notice* hears which model is taken and why.
    Raises MissingExtra where torch is needed and not installed, BadInput as the engines do.
    """
    found = exports_in(path)
    if found and (limits or adaptive or not (Path(path) / "nodes").is_dir()):
        ladder = choose(forms_of(found), limits or Limits())
        return _of_tree(ladder, kind, limits or Limits(), threads, adaptive, notice)
    directory = model_at(path)
    if limits or adaptive:
        raise BadInput(
            f"{path} is one model, and there is nothing to choose from",
            "Give a run, or what ract export RUN --all wrote",
        )
    if is_exported(directory):
        return _exported(directory, kind, threads or 1)
    with needs_extra(f"ract {verb} on a model directory", "train"):
        from ract.runtime.engines import torch
    options = {"device": device} if kind == "Decoder" else {}
    return getattr(torch, f"Torch{kind}")(directory, **options)


def _of_tree(
    ladder: list[Form],
    kind: str,
    limits: Limits,
    threads: int | None,
    adaptive: bool,
    notice: Callable[[str], None] | None,
) -> Any:
    def opened(form: Form) -> Any:
        return _exported(form.directory, kind, threads or form.measured.threads)

    first = ladder[0].measured
    if notice:
        notice(
            f"{ladder[0].name}: {first.size_bytes / 1e6:.1f} MB, {first.latency_ms:.2f} ms, "
            f"{first.peak_memory_bytes / 1e6:.0f} MB of memory, {first.threads} thread(s)"
        )
    if not adaptive:
        return opened(ladder[0])
    from ract.runtime import adaptive as module

    steps = module.Ladder(ladder, opened, latency_ms=limits.latency_ms, notice=notice)
    return getattr(module, f"Adaptive{kind}")(steps)


def _exported(directory: Path, kind: str, threads: int) -> Any:
    from ract.runtime.engines import text

    return getattr(text, f"Exported{kind}")(directory, threads=threads)
