"""Plans small enough for tests: a pico tree through the real pipeline."""

from __future__ import annotations

from pathlib import Path

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog", "that", "ran", "to", "its", "red", "house"]


def write_text_corpus(file: Path, documents: int = 300) -> Path:
    """A learnable text: sentences in a fixed order of words, one document a paragraph."""
    lines = []
    for number in range(documents):
        start = (number * 7) % len(WORDS)
        sentence = " ".join(WORDS[(start + i * (1 + number % 3)) % len(WORDS)] for i in range(60))
        lines.append(f"{number} {sentence}.")
    file.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return file


def plan_text(corpus: Path, *, extra: str = "", heal_tokens: int = 3072, leaf_tokens: int = 3072) -> str:
    """A two-level plan: two branches merged by learned α, stacked twice, healed; about a second of training."""
    return f"""
name = "pico"
[data]
train = ["{corpus}"]
document = "paragraph"
test_tokens = 1024
[tokenizer]
vocab_size = 300
[train]
batch_tokens = 256
block_size = 64
[compact]
hidden_size = 32
num_hidden_layers = 2
train = {{ tokens = {leaf_tokens} }}
[[level]]
method = "merge"
members = 2
branch = {{ tokens = 1024 }}
weights = "learned"
weights_tokens = 1024
[[level]]
method = "stack"
copies = 2
heal = {{ tokens = {heal_tokens} }}
{extra}
"""
