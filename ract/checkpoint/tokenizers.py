"""Whether two model directories read text alike: the same ids for the same words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ract.checkpoint.directory import read_json

# What a tokenizer does with length is a setting of its last user, not a part of the vocabulary.
_SETTINGS = ("truncation", "padding", "version")
_SLOW_FILES = ("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
               "source.spm", "target.spm")  # fmt: skip


def tokenizer_difference(a: Path, b: Path) -> str | None:
    """Where the tokenizers in two directories differ, in words; None if they do not, or if one has none to compare."""
    if (a / "tokenizer.json").is_file() and (b / "tokenizer.json").is_file():
        return _fast_difference(read_json(a / "tokenizer.json"), read_json(b / "tokenizer.json"))
    for name in _SLOW_FILES:
        first, second = a / name, b / name
        if first.is_file() and second.is_file() and first.read_bytes() != second.read_bytes():
            return f"their {name} are not the same"
    return None


def _fast_difference(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    ids, other = vocabulary(a), vocabulary(b)
    for word in sorted(ids.keys() | other.keys(), key=lambda w: (ids.get(w, other.get(w, 0)), w)):
        if ids.get(word) != other.get(word):
            first, second = (f"id {table[word]}" if word in table else "absent" for table in (ids, other))
            return f"the token {word!r} is {first} in one and {second} in the other"
    for key in sorted((a.keys() | b.keys()) - set(_SETTINGS)):
        if json.dumps(a.get(key), sort_keys=True) != json.dumps(b.get(key), sort_keys=True):
            return f"their {key.replace('_', ' ')} differ"
    return None


def vocabulary(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Token → id of a parsed ``tokenizer.json``, added tokens included."""
    model = tokenizer.get("model") or {}
    words = model.get("vocab") or {}
    if isinstance(words, list):  # Unigram keeps [token, score] pairs; the place is the id
        words = {pair[0]: index for index, pair in enumerate(words)}
    return {**words, **{token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}}
