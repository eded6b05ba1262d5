"""How a build is shown while it runs: the whole tree, each node under way, tokens a second, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ract.plan.graph import Graph
from ract.plan.quantities import show_count, show_time
from ract.tree.build import Watcher

_SECONDS_BETWEEN_LINES = 10.0


class BuildDisplay(Watcher):
    """Bars on a terminal; one line every ten seconds and one per finished node where there is none (a log)."""

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr, highlight=False)
        self.live = self.console.is_terminal
        self.bars = Progress(
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )
        self.flops: dict[str, float] = {}
        self.done: dict[str, float] = {}
        self.begun: dict[str, float] = {}
        self.found: dict[str, tuple[int, float]] = {}  # tokens at a node's first report, and when that was
        self.notes: dict[str, str] = {}
        self.tasks: dict[str, TaskID] = {}
        self.finished = self.total = 0
        self.before = 0.0  # FLOPs found done in checkpoints
        self.started_at = self.last_line = time.monotonic()

    def __enter__(self) -> BuildDisplay:
        if self.live:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bars.stop()

    def data(self, what: str, done: int, total: int) -> None:
        """The corpus is being prepared."""
        self._show("data", done, total, what)

    def note(self, text: str) -> None:
        """Said once, above the bars."""
        self.console.print(f"Note: {text}")

    def started(self, graph: Graph, to_do: Mapping[str, float], finished: int) -> None:
        """The tree is known: say what will be made."""
        self._drop("data")
        self.flops, self.finished, self.total = dict(to_do), finished, finished + len(to_do)
        self.started_at = time.monotonic()
        kept = f", {finished} of {self.total} nodes are there already" if finished else f", {self.total} nodes"
        if to_do:
            self.console.print(f"Building {graph.final}{kept}")

    def node_started(self, name: str) -> None:
        """A node is under way."""
        self.begun[name] = time.monotonic()

    def node_progress(self, name: str, what: str, done: int, total: int) -> None:
        """Move the node's bar and the whole tree's."""
        note = what
        if what == "train" and done:
            self.done[name] = self.flops.get(name, 0.0) * done / total
            note = f"{show_count(done)} of {show_count(total)} tokens"
            rate = self._rate(name, done)
            if rate > 0:
                note += f", {show_count(rate)}/s, {show_time((total - done) / rate)} left"
        self._show(name, done, total, note)
        self._tree()

    def node_finished(self, name: str) -> None:
        """The node is in its place."""
        self.finished += 1
        self.done[name] = self.flops.get(name, 0.0)
        self._drop(name)
        seconds = time.monotonic() - self.begun[name]
        self.console.print(f"  {name} made in {show_time(seconds)} ({self.finished} of {self.total} nodes)")
        self._tree()

    def reporting(self) -> None:
        """The models are made; samples and figures follow."""
        self.console.print("  writing samples and the report")

    def _rate(self, name: str, done: int) -> float:
        """Tokens a second since the node's first report, which also starts its clock: loading does not count."""
        if name not in self.found:
            self.found[name] = (done, time.monotonic())
            self.before += self.done[name]
        before, clock = self.found[name]
        return (done - before) / max(1e-9, time.monotonic() - clock)

    def _tree(self) -> None:
        done, total = sum(self.done.values()), max(1.0, sum(self.flops.values()))
        share, made = done / total, done - self.before
        spent = time.monotonic() - self.started_at
        left = f", about {show_time(spent * (total - done) / made)} left" if made > 0.02 * total else ""
        note = f"{self.finished} of {self.total} nodes{left}"
        if self.live:
            self._show("whole tree", round(1000 * share), 1000, note)
        elif time.monotonic() - self.last_line > _SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            under_way = "; ".join(f"{name}: {note}" for name, note in self.notes.items())
            self.console.print(f"  {100 * share:.0f}% of the tree, {note}; {under_way}", soft_wrap=True)

    def _show(self, name: str, done: int, total: int, note: str) -> None:
        self.notes[name] = note
        if not self.live:
            return
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=total, note=note)
        self.bars.update(self.tasks[name], completed=done, total=total, note=note)

    def _drop(self, name: str) -> None:
        self.notes.pop(name, None)
        if name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))


@contextmanager
def one_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A ``progress(what, done, total)`` callback drawn as a bar per kind of work; silent without a terminal."""
    console = Console(file=sys.stderr)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    with bars:
        yield report
