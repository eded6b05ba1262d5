"""``ract.build``: a plan's recursion and its report, which together are a finished run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ract.report.record import write_report
from ract.tree import build as tree
from ract.tree.build import Executor, Run, Watcher
from ract.tree.local import LocalExecutor


def build(
    plan: str | Path,
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    checkpoint_seconds: float = tree.CHECKPOINT_SECONDS,
    watcher: Watcher | None = None,
    executor: Callable[[int, Path], Executor] = LocalExecutor,
) -> Run:
    """Build *plan* as :func:`ract.tree.build.build` does, then write ``report.json`` and ``report.html`` beside it.

    Raises what that and :func:`ract.report.record.write_report` raise.
    """
    watcher = watcher or Watcher()
    run = tree.build(
        plan, out, workers=workers, checkpoint_seconds=checkpoint_seconds, watcher=watcher, executor=executor
    )
    watcher.reporting()
    write_report(run)
    return run
