"""What is told of this machine, the speed of training among it, and how its memory is kept."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ract.tree import machine


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The speeds that measurements give, one after another; a measurement more than these fails."""
    speeds = [1e10, 5e10]
    given = iter(speeds)

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps({"64": next(given)}) + "\n")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "subprocess", SimpleNamespace(run=run))  # here only: platform uses it too
    return speeds


def test_a_speed_from_a_busy_machine_serves_only_until_it_is_idle(
    measured: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, fast = ({"64": speed} for speed in measured)
    monkeypatch.setattr(machine, "is_busy", lambda: True)
    assert machine.training_speed(1, measure=False) is None
    assert machine.training_speed(1) == slow
    assert machine.training_speed(1) == slow
    monkeypatch.setattr(machine, "is_busy", lambda: False)
    assert machine.training_speed(1, measure=False) == slow
    assert machine.training_speed(1) == fast
    monkeypatch.setattr(machine, "is_busy", lambda: True)
    assert machine.training_speed(1) == fast


def test_a_speed_is_measured_again_after_an_update(measured: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = ({"64": speed} for speed in measured)
    monkeypatch.setattr(machine, "is_busy", lambda: False)
    assert machine.training_speed(1) == slow
    monkeypatch.setattr("importlib.metadata.version", lambda package: "99")
    assert machine.training_speed(1) == fast


_FILL_TWICE = """
import resource, sys
from contextlib import nullcontext
from ract.machine import freed_memory_kept

def resident():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) << 10

with freed_memory_kept() if sys.argv[1] == "kept" else nullcontext(lambda: None) as hand_back:
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(b"x") * SIZE
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    held = resident()
    hand_back()
    handed_back = held - resident()
    bytearray(b"x") * SIZE
    held = resident()
at_the_end = resident()
bytearray(b"x") * SIZE
kept_after = resident() - at_the_end
print(faults * resource.getpagesize() / SIZE, handed_back / SIZE, (held - at_the_end) / SIZE, kept_after / SIZE)
""".replace("SIZE", str(200 << 20))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_while_the_block_runs() -> None:
    def run(how: str) -> list[float]:
        done = subprocess.run([sys.executable, "-c", _FILL_TWICE, how], capture_output=True, text=True, check=True)
        return [float(share) for share in done.stdout.split()]

    faulted, handed_back, returned, kept_after = run("plain")
    assert faulted > 0.9
    assert abs(handed_back) < 0.1
    assert abs(returned) < 0.1
    assert kept_after < 0.1
    faulted, handed_back, returned, kept_after = run("kept")
    assert faulted < 0.1
    assert handed_back > 0.9
    assert returned > 0.9
    assert kept_after < 0.1
