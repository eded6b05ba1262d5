"""The published table of architectures and methods is what the code does."""

from __future__ import annotations

import pytest

from benchmarks.architectures import TARGET, document


@pytest.mark.slow
def test_the_table_is_what_the_code_does() -> None:
    assert TARGET.read_text(encoding="utf-8") == document(), "run python -m benchmarks.architectures"
