"""A worker process: reads jobs as JSON lines, makes nodes, answers with JSON lines.

It lives for many jobs, so that torch is imported once. It notices when the process that started it is gone and stops at
once: the run may be started again, and two workers must not make the same node.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import IO, Any

from ract.errors import RactError, StoppedByParent
from ract.tree.job import Job

_SECONDS_BETWEEN_REPORTS = 0.2


def main() -> None:
    """Serve jobs from standard input until it closes. Whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    parent = os.getppid()
    from transformers.utils import logging

    from ract.tree.make import make

    logging.disable_progress_bar()  # progress is reported, not drawn here
    _answer(answers, event="ready")
    for line in sys.stdin:
        job = Job.from_json(line)
        try:
            make(job, _Reporter(answers, job.node.name, parent))
            _answer(answers, event="finished", node=job.node.name)
        except StoppedByParent:
            return
        except RactError as error:
            _answer(
                answers,
                event="failed",
                node=job.node.name,
                problem=error.problem,
                remedy=error.remedy,
                exit_code=error.exit_code,
            )
        except Exception:
            traceback.print_exc()
            last = traceback.format_exc().strip().splitlines()[-1]
            _answer(
                answers, event="failed", node=job.node.name, problem=f"{job.node.name}: {last}", remedy="", exit_code=1
            )


class _Reporter:
    """Passes progress on, a few times a second, and stops the work when nobody is left to hear it."""

    def __init__(self, answers: IO[str], node: str, parent: int) -> None:
        self.answers, self.node, self.parent = answers, node, parent
        self.last: tuple[str, float] = ("", 0.0)

    def __call__(self, what: str, done: int, total: int) -> None:
        if os.getppid() != self.parent:
            raise StoppedByParent("the build that ordered this work is gone")
        now = time.monotonic()
        if what == self.last[0] and done < total and now - self.last[1] < _SECONDS_BETWEEN_REPORTS:
            return
        self.last = (what, now)
        _answer(self.answers, event="progress", node=self.node, what=what, done=done, total=total)


def _answer(answers: IO[str], **values: Any) -> None:
    try:
        answers.write(json.dumps(values) + "\n")
    except BrokenPipeError as error:
        raise StoppedByParent("the build that ordered this work is gone") from error


if __name__ == "__main__":
    main()
