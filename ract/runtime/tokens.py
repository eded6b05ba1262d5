"""Text to token numbers and back with the ``tokenizers`` library alone: what running a model needs of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from ract.errors import BadInput

LONGEST = 512  # tokens read at once where neither model nor tokenizer sets a limit


def mended(text: str) -> str:
    """*text* with U+FFFD for each half character (a lone surrogate, as broken JSON has), which no tokenizer takes."""
    return text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="replace")


class Tokens:
    """The tokenizer in *directory* (``tokenizer.json``). Raises BadInput when it cannot be read."""

    def __init__(self, directory: Path) -> None:
        file = directory / "tokenizer.json"
        try:
            self.backend = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain exceptions
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"{file} is not a readable tokenizer ({reason})", "Copy it again from its source") from error
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = True  # a text that spells out a special token is text like any other

    def encode(self, text: str) -> list[int]:
        """The numbers of *text*, framed as the model reads it."""
        return self.backend.encode(text).ids

    def windows(self, text: str, limit: int, stride: int = 0) -> list[list[int]]:
        """*text* in framed pieces of at most *limit* tokens, which overlap by *stride* tokens."""
        self.backend.enable_truncation(limit, stride=stride)
        try:
            encoding = self.backend.encode(text)
        finally:
            self.backend.no_truncation()
        return [encoding.ids, *(one.ids for one in encoding.overflowing)]

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of *numbers*, special tokens left out."""
        return self.backend.decode(list(numbers), skip_special_tokens=True)
