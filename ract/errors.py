"""What can go wrong, each with its remedy.

The command line prints one line per error and exits with the class's code: 2 when the user can mend the input,
1 when the work itself failed. Library callers catch :class:`RactError`.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class RactError(Exception):
    """A failure that is explained to the user: what is wrong, then what to do about it."""

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem.rstrip(".")
        self.remedy = remedy.rstrip(".")
        sentences = [self.problem, self.remedy] if remedy else [self.problem]
        super().__init__(" ".join(s if s.endswith(("?", "!")) else f"{s}." for s in sentences))


class BadInput(RactError):
    """The input is wrong and the user can mend it (a plan, a path, a file, an option, a full disk)."""

    exit_code = 2


class MissingExtra(BadInput):
    """A feature needs an optional package that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs packages that are not installed", f"Install them: pip install 'ract[{extra}]'"
        )


class NonFiniteLoss(RactError):
    """Training diverged; nothing of the diverged state was saved."""


class StoppedByParent(RactError):
    """The process that ordered this work is gone, so the work stops at its last checkpoint."""


def nearest(word: str, known: Iterable[str]) -> str:
    """``'did you mean "x"?'`` for the known word closest to *word*, else the list of known words."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f'Did you mean "{close[0]}"?' if close else f"Known: {', '.join(known)}"


@contextmanager
def needs_extra(feature: str, extra: str) -> Iterator[None]:
    """Turn an ``ImportError`` inside the block into :class:`MissingExtra` for *extra*; one of our own stays one."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "ract":
            raise
        raise MissingExtra(feature, extra) from error


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn "no space", "file too large" and "permission denied" while writing *target* into :class:`BadInput`.

    safetensors raises its own error type, whose text carries the operating system's error number.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _errno_in(str(error))
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise BadInput(
                f"no space left on the disk while writing {target}",
                "Free some space or choose another output folder and run it again: finished work is kept",
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise BadInput(f"{target} cannot be written: permission denied", "Choose another output folder") from error
        raise


def _errno_in(text: str) -> int | None:
    known = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES)
    return next((number for number in known if f"os error {number}" in text), None)
