"""Continue a text, token by token, as it is written: what ``ract generate`` streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ract.errors import BadInput
from ract.runtime.open import open_engine
from ract.runtime.sampling import Sampler
from ract.runtime.tokens import mended


class Decoder(Protocol):
    """An engine that continues a text: a model and its tokenizer."""

    directory: Path
    limit: int | None
    ends: set[int]

    def encode(self, text: str) -> list[int]:
        """The numbers of *text* as the model reads it, of an empty one the token that begins a text."""

    def decode(self, numbers: list[int]) -> str:
        """The text of *numbers*."""

    def next_logits(self, numbers: list[int], seen: int, cache: Any) -> tuple[npt.NDArray[np.float32], Any]:
        """Logits ``(vocab,)`` after *numbers*, which follow the *seen* tokens in *cache*, and the new cache."""


class TextGenerator:
    """A loaded model that continues texts, for callers with more than one prompt. *options* are those of
    :func:`ract.runtime.open.open_engine`: threads, device, limits, adaptive, notice. *draft*: an exported smaller model
    of the same tree that proposes *ahead* tokens at a time (:mod:`ract.runtime.speculate`); the text stays as without.

    Raises BadInput as loading does.
    """

    def __init__(self, path: str | Path, *, draft: str | Path | None = None, ahead: int = 4, **options: Any) -> None:
        self.engine: Decoder = open_engine(path, "Decoder", "generate", **options)
        self.speculator = None
        if draft is not None:
            from ract.runtime.speculate import speculator

            self.speculator = speculator(self.engine, Path(draft), ahead=ahead, threads=options.get("threads") or 1)

    def stream(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """The continuation of *prompt* in pieces of whole characters; joined, they are the text without the prompt.

        Each token is drawn after dividing the logits by *temperature* (0: the most likely one, always), keeping the
        *top_k* likeliest (0: all) and of those the fewest whose probabilities reach *top_p*; equal *seed*, equal text.
        It ends after *max_new_tokens*, where the model ends the text, or before the first of the strings in *stop* to
        be complete. An empty prompt starts from the beginning of a text. Where prompt and continuation outgrow what
        the model can look at, it goes on from the last half of that.

        Raises BadInput for a prompt longer than the model can look at, and for options out of range.
        """
        check_options(max_new_tokens, temperature, top_p, top_k, stop)
        numbers = self._encode(prompt)
        sampler = Sampler(temperature, top_p, top_k, seed)
        if self.speculator is None:
            drawn = self._drawn(numbers, sampler, max_new_tokens)
        else:
            drawn = self.speculator.tokens(numbers, sampler, max_new_tokens)
        return cut_at(self._pieces(numbers, drawn), stop)

    def _encode(self, prompt: str) -> list[int]:
        numbers = self.engine.encode(mended(prompt))
        if self.engine.limit is not None and len(numbers) > self.engine.limit:
            raise BadInput(
                f"the prompt has {len(numbers)} tokens, and {self.engine.directory} can look at {self.engine.limit}",
                "Shorten the prompt",
            )
        return numbers

    def _drawn(self, numbers: list[int], sampler: Sampler, max_new_tokens: int) -> Iterator[int]:
        """Tokens after *numbers*, one by one."""
        cache: object = None
        written = list(numbers)
        seen, fresh, limit = 0, numbers, self.engine.limit
        for _ in range(max_new_tokens):
            if limit is not None and seen + len(fresh) > limit:
                cache, seen, fresh = None, 0, written[-max(1, limit // 2) :]
            logits, cache = self.engine.next_logits(fresh, seen, cache)
            seen += len(fresh)
            fresh = [sampler(logits)]
            written += fresh
            yield fresh[0]

    def _pieces(self, numbers: list[int], drawn: Iterable[int]) -> Iterator[str]:
        """The text of the tokens *drawn* after *numbers*, up to one that ends it."""
        text = _Detokenizer(self.engine.decode, numbers)
        for number in drawn:
            if number in self.engine.ends:
                break
            yield text.add(number)
        yield text.rest()


def generate(
    model_dir: str | Path,
    prompt: str = "",
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    stop: Sequence[str] = (),
    **options: Any,
) -> Iterator[str]:
    """Load the model at *model_dir*, exported or not, and continue *prompt*: see :meth:`TextGenerator.stream`. Further
    *options* are those of :class:`TextGenerator`.
    """
    check_options(max_new_tokens, temperature, top_p, top_k, stop)
    return TextGenerator(model_dir, **options).stream(
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=stop,
    )


def check_options(max_new_tokens: int, temperature: float, top_p: float, top_k: int, stop: Sequence[str]) -> None:
    """Raise BadInput for the first option that is out of range."""
    for right, problem, remedy in (
        (max_new_tokens >= 1, f"max_new_tokens = {max_new_tokens} writes nothing", "Give at least 1"),
        (0 <= temperature < float("inf"), f"temperature = {temperature} is out of range", "Give 0 (greedy) or more"),
        (0 < top_p <= 1, f"top_p = {top_p} is out of range", "Give more than 0 and at most 1 (all)"),
        (top_k >= 0, f"top_k = {top_k} is out of range", "Give 0 (all) or more"),
        (all(stop), "a stop string is empty", "Leave it out or give the text to stop at"),
    ):
        if not right:
            raise BadInput(problem, remedy)


def cut_at(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """*pieces* up to the first of *stop* that is complete (of several at once the longest), which is left out.

    What may still become a stop string is held back, so how the text is cut into pieces makes no difference.
    """
    held = ""
    for piece in pieces:
        out = ""
        for character in piece:
            held += character
            found = max((len(s) for s in stop if held.endswith(s)), default=0)
            if found:
                out += held[:-found]
                if out:
                    yield out
                return
            free = len(held) - _begun(held, stop)
            out, held = out + held[:free], held[free:]
        if out:
            yield out
    if held:
        yield held


def _begun(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of *text* may be the beginning of a stop string."""
    lengths = range(min(len(text), max(map(len, stop), default=0)), 0, -1)
    return next((n for n in lengths if any(s.startswith(text[-n:]) for s in stop)), 0)


class _Detokenizer:
    """Numbers to text, piece by piece: what ends within a character waits for the rest of it."""

    def __init__(self, decode: Callable[[list[int]], str], prompt: list[int]) -> None:
        self._decode = decode
        self.numbers = list(prompt)
        # Decoding goes on from tokens already written, since some tokenizers treat the first token's space otherwise.
        self._begin, self._written = 0, len(prompt)

    def add(self, number: int) -> str:
        """The whole characters that *number* completes; "" when there are none yet."""
        self.numbers.append(number)
        new = self.rest()
        if not new or new.endswith("\ufffd"):
            return ""
        self._begin, self._written = self._written, len(self.numbers)
        return new

    def rest(self) -> str:
        """What is not written yet, broken characters included."""
        known = self._decode(self.numbers[self._begin : self._written])
        return self._decode(self.numbers[self._begin :])[len(known) :]
