"""Small labelled texts and pairs that can be learned, and a prepared set of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from ract.data.examples import Examples, ExampleSpec, prepare_examples

GOOD, BAD = ("fine", "lovely", "great", "好"), ("poor", "awful", "dull", "差")
NOUNS = {"film": "Film", "book": "Buch", "house": "Haus", "dog": "Hund", "tree": "Baum"}
ADJECTIVES = {"red": "rot", "old": "alt", "big": "gross", "new": "neu"}


def reviews(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Texts whose class follows from one word in them, of different lengths."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        good = draw.random() < 0.5
        words = [draw.choice(tuple(NOUNS)) for _ in range(draw.randint(1, 12))]
        words.insert(draw.randrange(len(words) + 1), draw.choice(GOOD if good else BAD))
        rows.append({"text": f"{' '.join(words)} {number}", "label": "good" if good else "bad"})
    return rows


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """English sentences and their word-for-word German."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        pairs = [(draw.choice(tuple(ADJECTIVES)), draw.choice(tuple(NOUNS))) for _ in range(draw.randint(1, 4))]
        english = " and ".join(f"the {a} {n}" for a, n in pairs)
        german = " und ".join(f"{NOUNS[n]} ist {ADJECTIVES[a]}" for a, n in pairs)
        found.append((english, german))
    return found


def write_rows(path: Path, rows: list[dict[str, str]]) -> str:
    """*rows* as JSONL."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_pairs(folder: Path, name: str, pairs: list[tuple[str, str]]) -> tuple[str, str]:
    """*pairs* as two files whose lines correspond."""
    for side, language in enumerate(("en", "de")):
        (folder / f"{name}.{language}").write_text("".join(p[side] + "\n" for p in pairs), encoding="utf-8")
    return str(folder / f"{name}.en"), str(folder / f"{name}.de")


def classification(folder: Path, count: int = 300) -> Examples:
    """A prepared set of reviews."""
    source = write_rows(folder / "reviews.jsonl", reviews(count))
    spec = ExampleSpec("classification", train=(source,), valid_fraction=0.15, test_fraction=0.15, max_tokens=32)
    return prepare_examples(spec, folder / "data", vocab_size=400)


def translation(folder: Path, count: int = 300) -> Examples:
    """A prepared set of sentence pairs."""
    files = write_pairs(folder, "train", sentences(count))
    spec = ExampleSpec("translation", train=files, valid_fraction=0.15, test_fraction=0.15, max_tokens=48)
    return prepare_examples(spec, folder / "data", vocab_size=400)
