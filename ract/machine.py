"""The machine this process runs on: its processors, its free memory, and where measurements of it are kept."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

# A thread of OpenMP that waits for another one spins, and on a busy machine takes from it the processor that it needs:
# two threads were 3 to 30 times slower than one. After so many turns it sleeps; an idle machine loses nothing.
_CALM = {"GOMP_SPINCOUNT": "1000", "TOKENIZERS_PARALLELISM": "false"}


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
    """What tells this machine from others, and *more*, as twelve hexadecimal digits."""
    known = [platform.node(), platform.processor(), platform.version(), *more]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:12]


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
