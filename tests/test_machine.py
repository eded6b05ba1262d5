"""What is told of this machine: the speed of training, measured when and kept how long."""

from __future__ import annotations

import json
import subprocess
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
