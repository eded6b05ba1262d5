"""Run jobs in processes of this machine. The interface is what any other executor (a cluster's, say) has to offer."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ract.errors import BadInput, RactError
from ract.machine import calm_environment
from ract.tree.job import Job


@dataclass(frozen=True)
class Event:
    """What a job reports: *kind* is ``progress`` (with *what*, *done*, *total*) or ``finished``."""

    kind: str
    node: str
    what: str = ""
    done: int = 0
    total: int = 0


class Executor(Protocol):
    """Whatever carries out jobs. A job is submitted only while :attr:`free` is positive."""

    @property
    def free(self) -> int:
        """How many more jobs can be under way now."""

    def submit(self, job: Job) -> None:
        """Start *job*."""

    def wait(self) -> Event:
        """The next event; raises the job's own error if one failed."""

    def close(self) -> None:
        """Stop whatever is under way; finished nodes and checkpoints stay."""


class LocalExecutor:
    """*workers* processes, started when first needed and kept for further jobs. Their output goes to *log*."""

    def __init__(self, workers: int, log: Path) -> None:
        self.workers, self.log = workers, log
        self._events: queue.Queue[tuple[_Worker, dict[str, Any]]] = queue.Queue()
        self._idle: list[_Worker] = []
        self._busy: dict[str, _Worker] = {}

    @property
    def free(self) -> int:
        """Workers without a job."""
        return self.workers - len(self._busy)

    def submit(self, job: Job) -> None:
        """Hand *job* to an idle worker, or to a new one."""
        worker = self._idle.pop() if self._idle else _Worker(self._events, self.log)
        worker.send(job)
        self._busy[job.node.name] = worker

    def wait(self) -> Event:
        """The next event of any job. Raises RactError (or BadInput) as the job did, or when its process died."""
        while True:
            worker, answer = self._events.get()
            kind = answer["event"]
            if kind == "ready":
                continue
            if kind == "died":
                if worker not in self._busy.values():
                    continue
                name = next(n for n, w in self._busy.items() if w is worker)
                raise RactError(*_why_it_died(name, answer["code"], self.log))
            if kind == "failed":
                error = BadInput if answer["exit_code"] == BadInput.exit_code else RactError
                raise error(answer["problem"], answer["remedy"])
            if kind == "finished":
                self._idle.append(self._busy.pop(answer["node"]))
                return Event("finished", answer["node"])
            return Event("progress", answer["node"], answer["what"], answer["done"], answer["total"])

    def close(self) -> None:
        """End all workers."""
        workers = [*self._idle, *self._busy.values()]
        self._idle, self._busy = [], {}
        for worker in workers:
            worker.end()


class _Worker:
    """One worker process and the thread that listens to it."""

    def __init__(self, events: queue.Queue[tuple[_Worker, dict[str, Any]]], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ract.tree.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                encoding="utf-8",
                env=calm_environment(),
                start_new_session=True,  # a Ctrl-C reaches the build alone, which then ends its workers in order
            )
        self.listener = threading.Thread(target=self._listen, args=(events,), daemon=True)
        self.listener.start()

    def send(self, job: Job) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(job.to_json() + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        with suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.listener.join()

    def _listen(self, events: queue.Queue[tuple[_Worker, dict[str, Any]]]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as answers:
            for line in answers:
                events.put((self, json.loads(line)))
        events.put((self, {"event": "died", "code": self.process.wait()}))


def _why_it_died(node: str, code: int, log: Path) -> tuple[str, str]:
    if code == -signal.SIGKILL:
        return (
            f"the process making {node} was killed",
            "If memory ran out, use fewer --workers or a smaller micro_batch_tokens, then run the same command again",
        )
    return f"the process making {node} ended with code {code}", f"See {log}; the same command goes on where it stopped"
