"""Fixtures shared by the whole suite."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

Ract = Callable[..., tuple[int, str, str]]

# A slow or busy machine must not fail a law: no deadlines, and the same examples in every run.
settings.register_profile("ract", deadline=None, derandomize=True)
settings.load_profile("ract")

# Two test processes share two cores: one thread each, set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout (or in RACT_DATA); the test is skipped where there is none."""
    folder = Path(os.environ.get("RACT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set RACT_DATA to use some")
    return folder


@pytest.fixture
def ract(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ract:
    """Run a command in this process: (exit code, standard output, standard error)."""

    from ract.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ract", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run
