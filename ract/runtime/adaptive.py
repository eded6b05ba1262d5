"""A ladder of models of one tree: the best that fits runs, and under pressure the next smaller one goes on."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ract.errors import RactError
from ract.machine import available_memory_bytes
from ract.runtime.choose import Form

_LEAST_FREE = 64 * 1024**2  # bytes; with less, the machine is about to swap or to kill somebody
_WINDOW = 8  # steps whose median says how fast it goes now
_BUSY = 3.0  # times the latency measured here before, where no limit was asked for

T = TypeVar("T")


Pressure = Callable[[Form], str | None]  # why the model that runs now is too large for the moment, or None


def memory_pressure(form: Form) -> str | None:
    """Whether too little memory is left on the machine, in words."""
    free = available_memory_bytes()
    if free is not None and free < _LEAST_FREE:
        return f"{free / 1e6:.0f} MB of memory are left"
    return None


class Ladder:
    """The engines of *forms*, the best first, opened by *open_form* when it is their turn; *notice* hears of every step
    down, in one sentence. *latency_ms* is what a step may take (None: three times what was measured when nothing else
    ran).
    """

    def __init__(
        self,
        forms: Sequence[Form],
        open_form: Callable[[Form], Any],
        *,
        latency_ms: float | None = None,
        notice: Callable[[str], None] | None = None,
        pressure: Pressure = memory_pressure,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.forms, self._open, self._limit = list(forms), open_form, latency_ms
        self._notice, self._pressure, self._clock = notice or (lambda text: None), pressure, clock
        self._times: deque[float] = deque(maxlen=_WINDOW)
        self.level = 0
        self.engine = self._opened()

    def run(self, work: Callable[[Any], T], steps: int = 1) -> T:
        """*work* with the engine of the moment, again with the next one where that fails; it counts as *steps*."""
        while True:
            reason = self._too_much()
            if reason and self.level + 1 < len(self.forms):
                self._step_down(reason)
            begin = self._clock()
            try:
                found = work(self.engine)
            except (
                MemoryError,
                RuntimeError,
            ) as error:  # onnxruntime and torch raise RuntimeError when memory is short
                if self.level + 1 == len(self.forms):
                    raise RactError(f"{self.forms[self.level].name} failed: {error}", "Free some memory") from error
                self._step_down(f"it failed ({' '.join(str(error).split())[:80]})")
                continue
            self._times.append(1000 * (self._clock() - begin) / steps)
            return found

    def _too_much(self) -> str | None:
        form = self.forms[self.level]
        reason = self._pressure(form)
        if reason or len(self._times) < _WINDOW:
            return reason
        now, limit = statistics.median(self._times), self._limit or _BUSY * form.measured.latency_ms
        return f"it takes {now:.1f} ms a step where {limit:.1f} ms are allowed" if now > limit else None

    def _step_down(self, reason: str) -> None:
        before = self.forms[self.level].name
        self.engine = None  # its memory is free before the next one is loaded
        self.level += 1
        self._times.clear()
        self.engine = self._opened()
        self._notice(f"{before}: {reason}; going on with {self.forms[self.level].name}")

    def _opened(self) -> Any:
        while True:
            try:
                return self._open(self.forms[self.level])
            except Exception:
                if self.level + 1 == len(self.forms):
                    raise
                self.level += 1


class AdaptiveDecoder:
    """A decoder on a :class:`Ladder`: after a step down the next model first reads what is written so far."""

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder
        self.directory = ladder.forms[0].directory

    @property
    def limit(self) -> int | None:
        """The most tokens the model of the moment looks at."""
        return self.ladder.engine.limit

    @property
    def ends(self) -> set[int]:
        """The tokens that end a text."""
        return self.ladder.engine.ends

    def encode(self, text: str) -> list[int]:
        """The numbers of *text* as the model reads it."""
        return self.ladder.engine.encode(text)

    def decode(self, numbers: list[int]) -> str:
        """The text of *numbers*."""
        return self.ladder.engine.decode(numbers)

    def next_logits(self, numbers: list[int], seen: int, cache: Any) -> tuple[Any, Any]:
        """Logits ``(vocab,)`` after *numbers*, which follow the *seen* tokens in *cache*, and the new cache."""
        level, history, inner = cache or (self.ladder.level, [], None)
        history = [*history, *numbers]

        def step(engine: Any) -> tuple[Any, Any]:
            if self.ladder.level != level or inner is None:
                return engine.next_logits(history, 0, None)
            return engine.next_logits(numbers, seen, inner)

        logits, grown = self.ladder.run(step)
        return logits, (self.ladder.level, history, grown)


class AdaptiveClassifier:
    """A classifier on a :class:`Ladder`, batch by batch."""

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder
        self.labels, self.limit = ladder.engine.labels, ladder.engine.limit

    def windows(self, text: str, stride: int) -> list[list[int]]:
        """*text* in framed pieces of at most the limit's tokens, which overlap by *stride* tokens."""
        return self.ladder.engine.windows(text, stride)

    def probabilities(self, rows: Sequence[Sequence[int]], batch_size: int) -> Any:
        """The probability of every class for texts given as token numbers: ``(texts, classes)``, in their order."""
        found = []
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            work = partial(_probabilities, rows=part, batch_size=batch_size)
            found.append(self.ladder.run(work, len(part)))
        return np.concatenate(found)


class AdaptiveTranslator:
    """A translator on a :class:`Ladder`, batch by batch."""

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder
        self.limit, self.target_language = ladder.engine.limit, ladder.engine.target_language

    def length(self, text: str) -> int:
        """How many tokens *text* has, framed."""
        return self.ladder.engine.length(text)

    def translate(
        self, texts: Sequence[str], *, num_beams: int, max_new_tokens: int | None, batch_size: int
    ) -> list[str]:
        """The translations of *texts*, in their order."""
        options: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
        found: list[str] = []
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            found += self.ladder.run(partial(_translated, texts=part, options=options), len(part))
        return found


def _probabilities(engine: Any, rows: Sequence[Sequence[int]], batch_size: int) -> Any:
    return engine.probabilities(rows, batch_size)


def _translated(engine: Any, texts: Sequence[str], options: dict[str, Any]) -> list[str]:
    return engine.translate(texts, **options)
