"""Folders that one process works in at a time. The kernel drops a lock when its holder dies, however it dies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock: there, two processes must not be started on the same folder
    fcntl = None  # type: ignore[assignment]


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold the lock of *directory* itself (it follows renames); waits while another process holds it."""
    if fcntl is None:
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_abandoned(directory: Path, grace_seconds: float) -> bool:
    """Whether nobody holds *directory*; one younger than *grace_seconds* may be about to be held by its maker."""
    if fcntl is None:
        return False
    try:
        handle = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(handle).st_ctime + grace_seconds < time.time()
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
