"""Pico models that have a tokenizer, so that text goes through the real pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

from ract.data.tokenizer import train_tokenizer
from tests.pico import pico, save

TEXT = (
    "def read_json(path):\n    with open(path) as file:\n        return json.load(file)\n\n\n"
    "Once upon a time there was a cat — très jolie — and 一只小猫 sat on the mat. 🙂\n"
) * 40


def byte_level_model(folder: Path, name: str = "Qwen3", *, text: str = TEXT, seed: int = 0, **changes: Any) -> Path:
    """*name* of the zoo, saved in *folder* with byte-level BPE of 300 entries trained on *text*."""
    train_tokenizer([text], 300, folder)
    return save(pico(name, seed, **{"vocab_size": 300, "eos_token_id": 0, "bos_token_id": 0, **changes}), folder)


def word_piece_model(folder: Path, name: str, *, text: str = TEXT, **changes: Any) -> Path:
    """*name* of the zoo with BERT's kind of tokenizer."""
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator([text], vocab_size=200, show_progress=False)
    tokenizer = BertTokenizerFast(tokenizer_object=trained._tokenizer)
    save(pico(name, **{"vocab_size": len(tokenizer), **changes}), folder)
    tokenizer.save_pretrained(folder)
    return folder
