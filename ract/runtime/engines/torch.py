"""PyTorch: the reference engine, for model directories as they were trained."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ract.errors import BadInput
from ract.evaluate.classification import encode, positions, probabilities_of
from ract.evaluate.loading import check_vocabulary, load_causal_lm, load_for, max_positions
from ract.evaluate.translation import translate
from ract.runtime.tokens import LONGEST


class TorchDecoder:
    """A causal language model of a model directory. Raises BadInput as loading does."""

    def __init__(self, directory: Path, *, device: str = "cpu") -> None:
        self.directory, self.device = directory, device
        self.model, self.tokenizer = load_causal_lm(directory, device=device)
        self.limit = max_positions(self.model)
        found = getattr(self.model.generation_config, "eos_token_id", None)
        self.ends = {*(found if isinstance(found, list) else [found]), self.tokenizer.eos_token_id} - {None}
        self._keeps_logits = "logits_to_keep" in inspect.signature(self.model.forward).parameters

    def encode(self, text: str) -> list[int]:
        """The numbers of *text* as the model reads it, of an empty one the token that begins a text."""
        numbers: list[int] = list(self.tokenizer(text)["input_ids"])
        if not numbers:
            beginning = self.tokenizer.bos_token_id
            beginning = self.tokenizer.eos_token_id if beginning is None else beginning
            if beginning is None:
                problem = f"{self.directory} has no token that begins a text"
                raise BadInput(problem, "Give a prompt that is not empty")
            numbers = [beginning]
        check_vocabulary(max(numbers), self.model, self.directory)
        return numbers

    def decode(self, numbers: list[int]) -> str:
        """The text of *numbers*."""
        return self.tokenizer.decode(numbers, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @torch.inference_mode()
    def next_logits(self, numbers: list[int], seen: int, cache: object) -> tuple[npt.NDArray[np.float32], object]:
        """Logits ``(vocab,)`` after *numbers*, which follow the *seen* tokens in *cache*, and the new cache."""
        keep = {"logits_to_keep": 1} if self._keeps_logits else {}
        tokens = torch.tensor([numbers], device=self.device)
        mask = torch.ones(1, seen + len(numbers), dtype=torch.long, device=self.device)
        out = self.model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **keep)
        return out.logits[0, -1].float().cpu().numpy(), out.past_key_values


class TorchClassifier:
    """A classifier of a model directory."""

    def __init__(self, directory: Path) -> None:
        self.model, self.tokenizer = load_for("classification", directory)
        self.limit = positions(self.model, self.tokenizer) or LONGEST
        self.labels = [str(self.model.config.id2label[i]) for i in range(self.model.config.num_labels)]

    def windows(self, text: str, stride: int) -> list[list[int]]:
        """*text* in framed pieces of at most the limit's tokens, which overlap by *stride* tokens."""
        return self.tokenizer(
            text,
            truncation=True,
            max_length=self.limit,
            stride=stride,
            return_overflowing_tokens=True,
            split_special_tokens=True,
        )["input_ids"]

    def probabilities(self, rows: Sequence[Sequence[int]], batch_size: int) -> npt.NDArray[np.float64]:
        """The probability of every class for texts given as token numbers: ``(texts, classes)``, in their order."""
        return probabilities_of(self.model, self.tokenizer, rows, batch_size=batch_size)


class TorchTranslator:
    """An encoder-decoder of a model directory."""

    def __init__(self, directory: Path) -> None:
        self.model, self.tokenizer = load_for("translation", directory)
        self.limit = positions(self.model, self.tokenizer) or LONGEST
        self.target_language = str(getattr(self.model.config, "target_language", "") or "")

    def length(self, text: str) -> int:
        """How many tokens *text* has, framed."""
        return len(encode(self.tokenizer, text, None)[0])

    def translate(
        self, texts: Sequence[str], *, num_beams: int, max_new_tokens: int | None, batch_size: int
    ) -> list[str]:
        """The translations of *texts*, in their order."""
        outputs, _ = translate(
            self.model,
            self.tokenizer,
            texts,
            num_beams=num_beams,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )
        return outputs
