"""Translate lines of text: what ``ract translate`` prints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ract.errors import BadInput
from ract.runtime.open import open_engine
from ract.runtime.tokens import mended

# The end of a sentence: a mark (and a closing quote) before a space and no lower-case letter, or a full-width mark.
_SENTENCE_END = re.compile(
    r"""(?<=[.!?…؟۔।。！？])\s+(?![\sa-zà-ÿа-яё])"""
    r"""|(?<=[.!?…؟۔।。！？]["'”’)\]」』）])\s+(?![\sa-zà-ÿа-яё])"""
    r"""|(?<=[。！？])(?![”’」』）\s])"""
    r"""|(?<=[。！？][”’」』）])"""
)
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|etc|e\.g|i\.e|[A-Z])\.$")
_LONGEST_ABBREVIATION = 16  # characters that are looked at, more than any has: a line may be long
_WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "km", "my", "yue"})


class TranslatingEngine(Protocol):
    """An engine that translates sentences: a model and its tokenizer."""

    limit: int
    target_language: str

    def length(self, text: str) -> int:
        """How many tokens *text* has, framed."""

    def translate(
        self, texts: Sequence[str], *, num_beams: int, max_new_tokens: int | None, batch_size: int
    ) -> list[str]:
        """The translations of *texts*, in their order."""


class Translator:
    """A loaded translator, for callers with more than one text. *path* is a model directory, an exported model or a
    finished run; *options* are those of :func:`ract.runtime.open.open_engine`.

    Raises BadInput as loading does.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.path = Path(path)
        self.engine: TranslatingEngine = open_engine(path, "Translator", "translate", **options)
        self.limit = self.engine.limit
        language = re.split("[-_]", self.engine.target_language.lower())[0]
        self.joint = "" if language in _WITHOUT_SPACES else " "

    def translate(
        self,
        lines: Sequence[str],
        *,
        num_beams: int = 4,
        max_new_tokens: int | None = None,
        batch_size: int = 16,
        split: bool = True,
    ) -> list[str]:
        """The translation of every line, in their order; of an empty line, an empty line.

        With *split*, a line of several sentences is translated sentence by sentence, as the model was trained; without,
        only what is longer than the model can look at is divided. *max_new_tokens* bounds one sentence.
        """
        if num_beams < 1 or batch_size < 1:
            raise BadInput("num_beams and batch_size are at least 1", "Give 1 beam for greedy translation")
        pieces: list[str] = []
        owners: list[int] = []
        for number, line in enumerate(lines):
            parts = sentences(mended(line)) if split else [mended(line)]
            own = [piece for part in parts for piece in self._fitting(part.strip())]
            pieces += own
            owners += [number] * len(own)
        found: list[list[str]] = [[] for _ in lines]
        if pieces:
            outputs = self.engine.translate(
                pieces, num_beams=num_beams, max_new_tokens=max_new_tokens, batch_size=batch_size
            )
            for owner, output in zip(owners, outputs, strict=True):
                found[owner].append(" ".join(output.split()))
        return [self.joint.join(part for part in parts if part) for parts in found]

    def _fitting(self, text: str) -> Iterator[str]:
        """*text* in pieces that the model can look at, divided at spaces, or between characters where there is none."""
        if not text:
            return
        if len(text) == 1 or self.engine.length(text) <= self.limit:
            yield text
            return
        middle = len(text) // 2
        space = min((m.start() for m in re.finditer(r"\s", text)), key=lambda at: abs(at - middle), default=middle)
        cut = space if 0 < space < len(text) - 1 else middle
        yield from self._fitting(text[:cut].strip())
        yield from self._fitting(text[cut:].strip())


def sentences(text: str) -> list[str]:
    """*text* divided after the ends of its sentences; nothing of it but spaces is lost."""
    found: list[str] = []
    for piece in _SENTENCE_END.split(text):
        if found and _ABBREVIATION.search(found[-1][-_LONGEST_ABBREVIATION:]):
            found[-1] += f" {piece}"
        elif piece.strip():
            found.append(piece)
    return found


def translate(
    model: str | Path,
    texts: str | Iterable[str],
    *,
    num_beams: int = 4,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    split: bool = True,
) -> list[str]:
    """Load the translator at *model* and translate *texts*: see :meth:`Translator.translate`."""
    given = [texts] if isinstance(texts, str) else list(texts)
    return Translator(model).translate(
        given, num_beams=num_beams, max_new_tokens=max_new_tokens, batch_size=batch_size, split=split
    )
