"""Translate lines of text: what ``ract translate`` prints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ract.errors import BadInput
from ract.evaluate.classification import encode, positions
from ract.evaluate.loading import load_for
from ract.evaluate.translation import translate as translate_sentences
from ract.runtime.locate import model_at

_LONGEST = 512  # tokens translated at once where neither model nor tokenizer sets a limit
# The end of a sentence: a mark (and a closing quote) before a space and no lower-case letter, or a full-width mark.
_SENTENCE_END = re.compile(
    r"""(?<=[.!?…؟۔।。！？])\s+(?![\sa-zà-ÿа-яё])"""
    r"""|(?<=[.!?…؟۔।。！？]["'”’)\]」』）])\s+(?![\sa-zà-ÿа-яё])"""
    r"""|(?<=[。！？])(?![”’」』）\s])"""
    r"""|(?<=[。！？][”’」』）])"""
)
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|etc|e\.g|i\.e|[A-Z])\.$")
_WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "km", "my", "yue"})


class Translator:
    """A loaded translator, for callers with more than one text. *path* is a model directory or a finished run.

    Raises BadInput as loading does.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = model_at(path)
        self.model, self.tokenizer = load_for("translation", self.path)
        self.limit = positions(self.model, self.tokenizer) or _LONGEST
        language = str(getattr(self.model.config, "target_language", "") or "").lower()
        self.joint = "" if re.split("[-_]", language)[0] in _WITHOUT_SPACES else " "

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
            own = [piece for part in (sentences(line) if split else [line]) for piece in self._fitting(part.strip())]
            pieces += own
            owners += [number] * len(own)
        found: list[list[str]] = [[] for _ in lines]
        if pieces:
            outputs, _ = translate_sentences(
                self.model,
                self.tokenizer,
                pieces,
                num_beams=num_beams,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
            )
            for owner, output in zip(owners, outputs, strict=True):
                found[owner].append(" ".join(output.split()))
        return [self.joint.join(part for part in parts if part) for parts in found]

    def _fitting(self, text: str) -> Iterator[str]:
        """*text* in pieces that the model can look at, divided at spaces, or between characters where there is none."""
        if not text:
            return
        if len(text) == 1 or len(encode(self.tokenizer, text, None)[0]) <= self.limit:
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
        if found and _ABBREVIATION.search(found[-1]):
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
