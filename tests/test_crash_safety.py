"""A kill or a full disk at any point of an aggregation leaves nothing that looks finished; the next run succeeds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ract.aggregate.run import aggregate
from ract.checkpoint import directory
from ract.checkpoint.crashpoints import VARIABLE
from ract.checkpoint.directory import open_model
from ract.errors import BadInput
from tests.checkpoints import checkpoint, fingerprint, stored

_AGGREGATE = """
import sys
from ract.aggregate.run import aggregate
aggregate(sys.argv[1:3], sys.argv[3], weights=[0.5, 0.5], verify=False, force=True)
"""
# A process that may write no file beyond 64 KiB, and is told so by an error instead of being killed: a full disk.
_FULL_DISK = """
import errno, os, resource, signal, sys
from pathlib import Path
from ract.aggregate.run import aggregate
from ract.checkpoint import writer
from ract.errors import BadInput
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
if sys.argv[4] == "in mid-write":
    writer._reserve = lambda handle, size: None
try:
    aggregate(sys.argv[1:3], sys.argv[3], weights=[0.5, 0.5], verify=False, force=True)
except BadInput as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    return [
        checkpoint(tmp_path / name, {"w": torch.full((100, 1000), value)}).path
        for name, value in (("a", 1.0), ("b", 3.0))
    ]


def run(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def looks_finished(folder: Path) -> list[str]:
    """What of *folder*'s visible content a later run could take for a model, beside the inputs."""
    return sorted(
        path.name for path in folder.iterdir() if not path.name.startswith(".") and path.name not in ("a", "b")
    )


@pytest.mark.parametrize("point", ["weights-half-written", "weights-written", "before-publish"])
def test_a_kill_leaves_nothing_that_looks_finished(
    point: str, inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [fingerprint(path) for path in inputs]
    done = run(_AGGREGATE, *inputs, tmp_path / "out", **{VARIABLE: point})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert looks_finished(tmp_path) == []
    left = [path for path in tmp_path.iterdir() if path.name.startswith(".out.staging-")]
    assert len(left) == 1
    if point != "before-publish":
        with pytest.raises(BadInput):  # not even the folder left behind passes for a model
            aggregate([left[0], inputs[0]], tmp_path / "other", verify=False)
    monkeypatch.setattr(directory, "_GRACE_SECONDS", -1.0)
    aggregate(inputs, tmp_path / "out", weights=[0.5, 0.5], verify=False)
    assert stored(tmp_path / "out")["w"].unique().tolist() == [2.0]
    assert looks_finished(tmp_path) == ["out"]
    assert not left[0].exists(), "the next run sweeps what the dead one left"
    assert [fingerprint(path) for path in inputs] == before


def test_a_kill_while_replacing_keeps_the_old_model(inputs: list[Path], tmp_path: Path) -> None:
    aggregate(inputs, tmp_path / "out", weights=[1.0, 0.0], verify=False)
    before = fingerprint(tmp_path / "out")
    assert run(_AGGREGATE, *inputs, tmp_path / "out", **{VARIABLE: "before-publish"}).returncode == -signal.SIGKILL
    assert fingerprint(tmp_path / "out") == before
    aggregate(inputs, tmp_path / "out", weights=[0.5, 0.5], verify=False, force=True)
    assert stored(tmp_path / "out")["w"].unique().tolist() == [2.0]


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("when", ["in advance", "in mid-write"])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(when: str, inputs: list[Path], tmp_path: Path) -> None:
    before = [fingerprint(path) for path in inputs]
    done = run(_FULL_DISK, *inputs, tmp_path / "out", when)
    assert done.returncode == 2, done.stderr
    assert "no space left on the disk while writing" in done.stdout and len(done.stdout.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert [fingerprint(path) for path in inputs] == before


def test_a_full_disk_while_replacing_keeps_the_old_model(inputs: list[Path], tmp_path: Path) -> None:
    aggregate(inputs, tmp_path / "out", weights=[1.0, 0.0], verify=False)
    before = fingerprint(tmp_path / "out")
    assert run(_FULL_DISK, *inputs, tmp_path / "out", "in mid-write").returncode == 2
    assert fingerprint(tmp_path / "out") == before
    assert open_model(tmp_path / "out").lineage is not None


def test_an_error_in_mid_write_removes_what_was_written(inputs: list[Path], tmp_path: Path) -> None:
    broken = torch.full((100, 1000), 1.0)
    broken[99, 999] = torch.nan
    bad = checkpoint(tmp_path / "bad", {"w": broken}).path
    with pytest.raises(BadInput, match=r"tensor w of .* holds NaN"):
        aggregate([inputs[0], bad], tmp_path / "out", verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "bad"]
