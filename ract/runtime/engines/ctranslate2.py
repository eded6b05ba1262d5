"""CTranslate2: executes what ``ract export --format ctranslate2`` wrote. Needs numpy and ctranslate2, no torch.

CTranslate2 offers whole searches, not single steps: no call takes a cache from outside. A step here asks it for some
tokens of greedy search after the text so far, and for their logits; while the tokens that are fed are those of greedy
search, the next steps are answered from there. So greedy decoding runs at CTranslate2's own speed, and a sampled token
that is not the likeliest costs one reading of the text so far. Translation uses CTranslate2's own beam search.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np

from ract.errors import BadInput
from ract.runtime.engines.base import Floats, Ids
from ract.runtime.manifest import Manifest, read_manifest

_CLASSES = {"decoder": "Generator", "encoder": "Encoder", "encoder-decoder": "Translator"}
_COMPUTE = {"fp32": "float32", "int8": "int8_float32"}
# The search goes on until so many times num_beams translations are finished. transformers goes on while a running beam
# may still win: of twice 100 Tatoeba sentences 194 came out the same with 1, the library's default, and 197 with 2.
_PATIENCE = 2
_LONGEST_GUESS = 32  # tokens asked for at once: longer saves readings of the text, shorter keeps a stream even


@dataclass(frozen=True)
class State:
    """The tokens *written* (rows, tokens) after the *source*, and what greedy search would go on with: its next
    *tokens* (rows, guesses) and their *logits* (rows, guesses, vocabulary); *right* guesses came before.
    """

    written: Ids
    source: tuple[list[str], ...] = ()
    guessed: Ids | None = None
    logits: Floats | None = None
    right: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens have been seen."""
        return self.written.shape[1]

    def reordered(self, rows: Ids) -> State:
        """The state whose row *i* is this one's row ``rows[i]``."""
        source = tuple(self.source[row] for row in rows) if self.source else ()
        if self.guessed is None or self.logits is None:
            return State(self.written[rows], source)
        return State(self.written[rows], source, self.guessed[rows], self.logits[rows], self.right)

    def shortened(self, tokens: int) -> State:
        """The state as it was after its first *tokens*."""
        return State(self.written[:, :tokens], self.source)


class CTranslate2Model:
    """An exported model, loaded. *threads* of one operation (0: CTranslate2's own choice).

    Raises BadInput for a damaged or incomplete export.
    """

    def __init__(self, directory: str | Path, *, threads: int = 1, verify: bool = True) -> None:
        self.directory = Path(directory)
        self.manifest: Manifest = read_manifest(self.directory, verify=verify)
        kind = self.manifest.kind
        options = {"compute_type": _COMPUTE.get(self.manifest.precision, "default"), "intra_threads": threads}
        name = "shared_vocabulary.json" if kind == "encoder-decoder" else "vocabulary.json"
        try:
            self.model: Any = getattr(ctranslate2, _CLASSES[kind])(str(self.directory), device="cpu", **options)
            self.names: list[str] = json.loads((self.directory / name).read_text(encoding="utf-8"))
            self.head = _Head(self.directory / "head.safetensors") if kind == "encoder" else None
        except Exception as error:  # the library raises plain exceptions
            reason = " ".join(str(error).split())[:200]
            raise BadInput(
                f"{self.directory} is not a model that CTranslate2 opens ({reason})", "Export the model again"
            ) from error
        self.numbers = {name: number for number, name in enumerate(self.names)}

    def logits(self, ids: Ids, mask: Ids) -> Floats:
        """A classifier's logits (rows, classes) for *ids* (rows, tokens) where *mask* is 1."""
        assert self.head is not None
        given = ctranslate2.StorageView.from_array(np.ascontiguousarray(ids, dtype=np.int32))
        lengths = ctranslate2.StorageView.from_array(mask.sum(1).astype(np.int32))
        hidden = np.array(self.model.forward_batch(given, lengths).last_hidden_state, dtype=np.float32)
        return self.head(hidden[:, 0])

    def begin(self, ids: Ids | None = None, mask: Ids | None = None) -> State:
        """The state before the first token; of an encoder-decoder after the source *ids* where *mask* is 1."""
        if self.manifest.kind == "decoder":
            return State(np.zeros((0, 0), dtype=np.int64))
        assert ids is not None and mask is not None
        source = tuple(self._named(row[shown > 0]) for row, shown in zip(ids, mask, strict=True))
        return State(np.zeros((len(ids), 0), dtype=np.int64), source)

    def step(self, ids: Ids, state: State) -> tuple[Floats, State]:
        """Logits (rows, vocabulary) after the last of *ids* (rows, new tokens), and the state that has seen them."""
        written = _longer(state, ids)
        right = 0
        if state.guessed is not None and state.logits is not None and np.array_equal(ids, state.guessed[:, :1]):
            right = state.right + 1
            if state.guessed.shape[1] > 1:
                rest = replace(state, written=written, guessed=state.guessed[:, 1:], logits=state.logits[:, 1:])
                return rest.logits[:, 0], replace(rest, right=right)  # type: ignore[index]
        room = max(1, self.manifest.limit - written.shape[1]) if self.manifest.limit else _LONGEST_GUESS
        guessed, logits = self._guess(written, state.source, min(2 * right + 1, _LONGEST_GUESS, room))
        return logits[:, 0], State(written, state.source, guessed, logits, right)

    def scores(self, ids: Ids, state: State) -> tuple[Floats, State]:
        """As :meth:`step`, with the logits after every one of *ids*: (rows, new tokens, vocabulary)."""
        written = _longer(state, ids)
        if self.manifest.kind == "decoder":
            found = np.array(self.model.forward_batch(written.tolist()), dtype=np.float32)
            return found[:, -ids.shape[1] :], State(written)
        parts = []
        for place in range(ids.shape[1]):
            logits, state = self.step(ids[:, place : place + 1], state)
            parts.append(logits)
        return np.stack(parts, 1), state

    def search(
        self,
        state: State,
        sentences: int,
        *,
        start: int,
        ends: Sequence[int],
        num_beams: int,
        max_new_tokens: int,
        first: int | None = None,
        last: int | None = None,
        never: Sequence[Sequence[int]] = (),
    ) -> list[list[int]]:
        """The best translation of each of the *sentences* of *state*, by CTranslate2's own beam search.

        As :func:`ract.runtime.beam.beam_search`; what *start* says stands in the model already.
        """
        prefix = None if first is None else [[self.names[first]]] * sentences
        found = self.model.translate_batch(
            list(state.source[:sentences]),
            prefix,
            beam_size=num_beams,
            patience=_PATIENCE,
            max_input_length=0,
            max_decoding_length=max_new_tokens - (last is not None),  # the last one is no choice
            min_decoding_length=0,
            end_token=list(ends),
            return_end_token=True,
            suppress_sequences=[[self.names[number] for number in one] for one in never] or None,
        )
        return [[self.numbers[token] for token in one.hypotheses[0]] for one in found]

    def _guess(self, written: Ids, source: tuple[list[str], ...], count: int) -> tuple[Ids, Floats]:
        """The next tokens of greedy search after *written*, *count* or fewer, and the logits that they come from."""
        options = {"return_logits_vocab": True, "return_end_token": True, "beam_size": 1}
        if self.manifest.kind == "decoder":
            prompts = [self._named(row) for row in written]
            found = self.model.generate_batch(prompts, max_length=count, include_prompt_in_result=False, **options)
            tokens = [one.sequences_ids[0] for one in found]
        else:
            # The library itself puts the first token of *written*, the one that begins a translation.
            prefix = [self._named(row[1:]) for row in written]
            limit = written.shape[1] - 1 + count
            found = self.model.translate_batch(
                list(source), prefix, max_input_length=0, max_decoding_length=limit, min_decoding_length=0, **options
            )
            tokens = [[self.numbers[name] for name in one.hypotheses[0][written.shape[1] - 1 :]] for one in found]
        common = min(len(row) for row in tokens)  # a text that ends is not gone on with
        places = [one.logits[0][len(one.logits[0]) - len(row) :] for one, row in zip(found, tokens, strict=True)]
        logits = np.stack([np.stack([np.array(step, dtype=np.float32) for step in row[:common]]) for row in places])
        return np.array([row[:common] for row in tokens], dtype=np.int64), logits

    def _named(self, row: Ids) -> list[str]:
        return [self.names[number] for number in row]


class _Head:
    """What gives the classes from the first token's hidden state: two layers and an activation between them."""

    def __init__(self, file: Path) -> None:
        from safetensors import safe_open

        with safe_open(file, framework="numpy") as opened:
            self.weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            self.activation = (opened.metadata() or {})["activation"]

    def __call__(self, first: Floats) -> Floats:
        hidden = first @ self.weights["hidden.weight"].T + self.weights["hidden.bias"]
        hidden = np.tanh(hidden) if self.activation == "tanh" else np.maximum(hidden, 0)
        return hidden @ self.weights["out.weight"].T + self.weights["out.bias"]


def _longer(state: State, ids: Ids) -> Ids:
    """All tokens after *ids* were fed."""
    return ids if state.tokens == 0 else np.concatenate([state.written, ids], 1)
