"""Continue a text, token by token, as it is written: what ``ract generate`` streams."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerBase
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ract.errors import BadInput
from ract.evaluate.loading import check_vocabulary, load_causal_lm, max_positions


class TextGenerator:
    """A loaded model that continues texts, for callers with more than one prompt. Raises BadInput as loading does."""

    def __init__(self, model_dir: Path, *, device: str = "cpu") -> None:
        self.path, self.device = model_dir, device
        self.model, self.tokenizer = load_causal_lm(model_dir, device=device)
        self.positions = max_positions(self.model)
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        self.ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id} - {None}
        self._keeps_logits = "logits_to_keep" in inspect.signature(self.model.forward).parameters

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
        pieces = self._pieces(numbers, self._sampler(temperature, top_p, top_k, seed), max_new_tokens)
        return cut_at(pieces, stop)

    def _encode(self, prompt: str) -> list[int]:
        numbers: list[int] = list(self.tokenizer(prompt)["input_ids"])
        if not numbers:
            beginning = self.tokenizer.bos_token_id
            beginning = self.tokenizer.eos_token_id if beginning is None else beginning
            if beginning is None:
                raise BadInput(f"{self.path} has no token that begins a text", "Give a prompt that is not empty")
            numbers = [beginning]
        check_vocabulary(max(numbers), self.model, self.path)
        if self.positions is not None and len(numbers) > self.positions:
            raise BadInput(
                f"the prompt has {len(numbers)} tokens, and {self.path} can look at {self.positions}",
                "Shorten the prompt",
            )
        return numbers

    def _sampler(self, temperature: float, top_p: float, top_k: int, seed: int) -> Sampler:
        return Sampler(temperature, top_p, top_k, torch.Generator(self.device).manual_seed(seed))

    @torch.inference_mode()
    def _next_logits(self, numbers: list[int], seen: int, cache: object) -> tuple[torch.Tensor, object]:
        """Logits ``(1, vocab)`` after *numbers*, which follow the *seen* tokens in *cache*, and the new cache."""
        keep = {"logits_to_keep": 1} if self._keeps_logits else {}
        tokens = torch.tensor([numbers], device=self.device)
        mask = torch.ones(1, seen + len(numbers), dtype=torch.long, device=self.device)
        out = self.model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **keep)
        return out.logits[:, -1].float(), out.past_key_values

    def _pieces(self, numbers: list[int], sampler: Sampler, max_new_tokens: int) -> Iterator[str]:
        text = _Detokenizer(self.tokenizer, numbers)
        cache: object = None
        seen, fresh = 0, numbers
        for _ in range(max_new_tokens):
            if self.positions is not None and seen + len(fresh) > self.positions:
                cache, seen, fresh = None, 0, text.numbers[-max(1, self.positions // 2) :]
            logits, cache = self._next_logits(fresh, seen, cache)
            seen += len(fresh)
            number = sampler(logits)
            if number in self.ends:
                break
            fresh = [number]
            yield text.add(number)
        yield text.rest()


class Sampler:
    """Draws the next token from logits ``(1, vocab)`` with its own random generator."""

    def __init__(self, temperature: float, top_p: float, top_k: int, generator: torch.Generator) -> None:
        self.greedy, self.generator = temperature == 0, generator
        self.warpers = LogitsProcessorList()
        if not self.greedy and temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_k:
            self.warpers.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            self.warpers.append(TopPLogitsWarper(float(top_p)))

    def __call__(self, logits: torch.Tensor) -> int:
        """The number of the token."""
        if self.greedy:
            return int(logits.argmax(-1))
        likely = torch.softmax(self.warpers(torch.empty(1, 0, dtype=torch.long), logits), dim=-1)
        return int(torch.multinomial(likely, 1, generator=self.generator))


def generate(
    model_dir: Path,
    prompt: str = "",
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    stop: Sequence[str] = (),
    device: str = "cpu",
) -> Iterator[str]:
    """Load the model at *model_dir* and continue *prompt*: see :meth:`TextGenerator.stream`."""
    check_options(max_new_tokens, temperature, top_p, top_k, stop)
    return TextGenerator(Path(model_dir), device=device).stream(
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

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
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

    def _decode(self, numbers: list[int]) -> str:
        return self._tokenizer.decode(numbers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
