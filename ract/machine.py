"""The machine this process runs on: its processors, its free memory, and where measurements of it are kept."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

# A thread of OpenMP that waits for another one spins, and on a busy machine takes from it the processor that it needs:
# two threads were 3 to 30 times slower than one. After so many turns it sleeps; an idle machine loses nothing.
_CALM = {"GOMP_SPINCOUNT": "1000", "TOKENIZERS_PARALLELISM": "false"}

# Settings in glibc's malloc.h. A heap without padding of its whole size is taken down whenever a thread has emptied it.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20}
# Its defaults, and of the two thresholds that it adapts by itself the values where that ends.
_RETURNED = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10, _MMAP_THRESHOLD: 32 << 20}


def calm_environment() -> dict[str, str]:
    """The environment for a process that computes: this one's, with settings that are good company to other processes.

    They are read when a library is loaded, so they must stand before torch is imported.
    """
    return {**_CALM, **os.environ}


def processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """What to call this machine's processor in a record."""
    try:  # what Linux knows better than Python
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def is_busy() -> bool:
    """Whether other work takes more than half of the processors: a speed measured now is too low. False if unknown."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1)


def cache_folder() -> Path:
    """Where what was measured on this machine is kept: ``ract`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or (Path.home() / ".cache")
    return Path(base) / "ract"


def fingerprint(*more: object) -> str:
    """What tells this machine and the versions of what computes on it from others, and *more*: twelve hex digits."""
    versions = [_version(package) for package in ("ract", "torch", "onnxruntime")]
    known = [platform.node(), processor_name(), platform.version(), versions, *more]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:12]


def _version(package: str) -> str:
    """Of an installed package; empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def available_memory_bytes() -> int | None:
    """Memory that programs can still get without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration, ValueError):
        pass
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def peak_memory_bytes() -> int | None:
    """The largest resident size this process has had; None where the system does not say."""
    try:  # not getrusage: it starts from the size of the process that started this one
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration, ValueError):
        pass
    try:
        import psutil
    except ImportError:
        return None
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))


@contextmanager
def freed_memory_kept() -> Iterator[Callable[[], None]]:
    """While the block runs, memory that this process frees stays with it for its next tensors; then it is handed back.

    glibc returns large blocks to the system at once, and a training step, which makes the same tensors as the one
    before, waits for the system to hand every page out again (docs/decisions/0009). Other C libraries are left as
    they are. The block is given a function that hands back what is free at the moment.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        yield lambda: None
        return
    try:
        for setting, value in _KEPT.items():
            libc.mallopt(setting, value)
        yield lambda: libc.malloc_trim(0)
    finally:
        for setting, value in _RETURNED.items():
            libc.mallopt(setting, value)
        libc.malloc_trim(0)
