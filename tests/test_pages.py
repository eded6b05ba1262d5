"""The pages of results are what the committed results give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import application_pages, inference_pages

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("name", "write"), [("applications", application_pages.write_docs), ("inference", inference_pages.write_docs)]
)
def test_the_pages_are_those_of_the_results(
    name: str, write: Callable[[dict[str, Any], Path], None], tmp_path: Path
) -> None:
    write(json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")), tmp_path)
    for page in (f"{name}.md", f"{name}.zh-CN.md"):
        assert (ROOT / "docs" / page).read_text(encoding="utf-8") == (tmp_path / page).read_text(encoding="utf-8")


def test_every_row_has_a_plan_and_every_plan_a_row() -> None:
    plans = {file.stem for file in (ROOT / "benchmarks" / "applications").glob("*.toml")}
    assert plans == set(application_pages.ROWS)
