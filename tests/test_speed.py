"""Speed and memory: measured, not asserted; what is asserted is that the figures are those of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ract.errors import BadInput
from ract.evaluate.speed import PeakMemory, compare, measure, measure_alone
from tests.text_models import TEXT, byte_level_model, word_piece_model

SHORT = {"prompt_tokens": 8, "new_tokens": 3, "repeats": 2}
SPEEDS = {"prefill_tokens_per_second", "generation_tokens_per_second"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level_model(tmp_path_factory.mktemp("model") / "qwen3", tie_word_embeddings=True)


def test_size_is_that_of_the_model_with_tied_weights_once(directory: Path) -> None:
    found = measure(directory, **SHORT)
    assert found.keys() == {"parameters", "size_bytes", "peak_memory_bytes"} | SPEEDS
    assert found["size_bytes"] == (directory / "model.safetensors").stat().st_size
    assert found["parameters"] * 4 < found["size_bytes"] < found["parameters"] * 4 + 8192
    assert all(0 < found[speed] < float("inf") for speed in SPEEDS)


def test_lengths_are_cut_to_what_the_model_can_look_at(directory: Path) -> None:
    assert measure(directory, prompt_tokens=10**6, new_tokens=10**6, repeats=1)["prefill_tokens_per_second"] > 0


def test_peak_memory_sees_what_is_freed_again() -> None:
    with PeakMemory(0.001) as idle:
        pass
    with PeakMemory(0.001) as peak:
        block = torch.ones(64 << 20, dtype=torch.uint8)
        for _ in range(20):
            block.add_(1)
        del block
    assert peak.bytes - idle.bytes > 60 << 20


@pytest.mark.slow
def test_a_process_of_its_own(directory: Path) -> None:
    found = measure_alone(directory, **SHORT, threads=1)
    assert found.keys() == measure(directory, **SHORT).keys()


@pytest.mark.slow
def test_what_is_wrong_in_a_process_of_its_own_is_said_here(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty has no config.json"):
        measure_alone(tmp_path / "empty")


def test_models_side_by_side(directory: Path, tmp_path: Path) -> None:
    other = byte_level_model(tmp_path / "gpt2", "GPT-2")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    seen: list[tuple[str, int, int]] = []
    rows = compare(
        [directory, other],
        [str(tmp_path / "text.txt")],
        limit_bytes=400,
        speed=False,
        progress=lambda *e: seen.append(e),
    )
    assert [row["model"] for row in rows] == [str(directory), str(other)]
    assert rows[0]["bytes"] == rows[1]["bytes"]
    assert rows[0]["bits_per_byte"] != rows[1]["bits_per_byte"]
    assert [done for what, done, _ in seen if what != "evaluate"] == [0, 1, 2]
    assert sum(what == "evaluate" and done == total for what, done, total in seen) == 2
    with pytest.raises(BadInput, match="not a causal language model"):
        compare([word_piece_model(tmp_path / "bert", "BERT")], [str(tmp_path / "text.txt")])
