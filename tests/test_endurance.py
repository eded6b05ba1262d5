"""A model that runs for long and for many at once: the same answers, and no memory that grows."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from ract.export.export import export
from ract.runtime.generate import TextGenerator
from tests.formats import EACH, FORMATS

pytestmark = pytest.mark.slow
ANIMALS = ("cat", "dog", "bird", "fish", "cow", "fox", "bee", "ant")
PROMPTS = [f"Once upon a time there was a {animal}" for animal in ANIMALS]
TOKENS = 8


@pytest.mark.parametrize("form", EACH)
def test_a_thousand_generations_give_the_same_texts_and_memory_stays(
    form: str, shared_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip(FORMATS[form], exc_type=ImportError)
    story = shared_data / "checkpoints" / "stories260k"
    made = export(story, tmp_path / "out", format=form, precision="int8")  # type: ignore[arg-type]
    generator = TextGenerator(made.path)

    def text(prompt: str) -> str:
        return "".join(generator.stream(prompt, max_new_tokens=TOKENS, temperature=0))

    first = [text(prompt) for prompt in PROMPTS]
    process = psutil.Process()
    for _ in range(12):  # what is made once is made
        assert [text(prompt) for prompt in PROMPTS] == first
    gc.collect()
    before = process.memory_info().rss
    for _ in range(1000 // len(PROMPTS)):
        assert [text(prompt) for prompt in PROMPTS] == first
    gc.collect()
    assert process.memory_info().rss - before < 8 * 1024**2
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        for _ in range(5):
            assert list(pool.map(text, PROMPTS)) == first
