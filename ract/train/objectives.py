"""The kinds of training there are: the next token, masked tokens, the class of a text, a translation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ract.cost import MASKED_SHARE
from ract.data.batches import padded, training_batch, training_windows, window_count, windows_at
from ract.data.example_batches import IGNORED, Batch, ExampleOrder, Indices, collate, heldout_batches, micro_batches
from ract.data.examples import Examples
from ract.data.tokenizer import load_tokenizer
from ract.data.tokens import Corpus
from ract.errors import BadInput
from ract.plan.graph import TrainSpec
from ract.train.augment import Augmentation
from ract.train.objective import Objective

VALID_TOKENS = 16_384
_VALID_EXAMPLE_TOKENS = 32_768
# Translators whose logits are ``lm_head(hidden) + final_logits_bias``. Logits are the largest tensors of a step: here
# they are made at the targets alone, and without the loss that the model would compute of its own.
_HEAD_APART = ("marian", "bart", "mbart", "pegasus", "plbart")


class NextToken(Objective):
    """Each token of a window from those before it."""

    one_shape = True

    def __init__(self, spec: TrainSpec, tokens: np.ndarray, valid: np.ndarray | None) -> None:
        super().__init__(spec)
        self.tokens, self.valid = tokens, valid

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> tuple[list[Batch], int]:
        """See :meth:`Objective.micro_batches`. Raises BadInput when the windows do not divide among the processes."""
        windows = training_windows(self.tokens, **_order(self.spec, step + self.first_step))
        own = _of_this_process(windows, self.spec, rank, world)
        return [self.batch(piece) for piece in own], len(windows) * self.spec.block_size

    def pieces(self) -> list[Indices]:
        """See :meth:`Objective.pieces`."""
        count = window_count(self.tokens, self.spec.block_size)
        rows = max(1, self.spec.micro_batch_tokens // self.spec.block_size)
        return [np.arange(first, min(first + rows, count)) for first in range(0, count, rows)]

    def target_counts(self) -> Indices:
        """A block each."""
        return np.full(window_count(self.tokens, self.spec.block_size), self.spec.block_size)

    def _collated(self, members: Indices) -> Batch:
        return _shifted(windows_at(self.tokens, members, self.spec.block_size))

    def valid_batches(self) -> list[Batch]:
        """Windows from all over the valid split."""
        return [_shifted(rows) for rows in _valid_windows(self.valid, self.spec)]

    def targets(self, batch: Batch) -> torch.Tensor:
        """Every label is a target."""
        return batch["labels"].flatten()

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """(tokens, vocabulary)."""
        return model(input_ids=batch["input_ids"], use_cache=False).logits.flatten(0, 1)


class MaskedTokens(Objective):
    """Masked language modelling (Devlin et al., 1810.04805), 30% of the tokens predicted (Wettig et al., 2202.08005).

    Of the chosen tokens 80% are shown as the mask, 10% as another token and 10% as they are; which, follows from the
    step alone. The head sees only the chosen positions.
    """

    def __init__(self, spec: TrainSpec, data: Examples) -> None:
        super().__init__(spec)
        self.tokens, self.valid, self.vocab_size = data.stream["train"], data.stream["valid"], data.vocab_size
        mask = load_tokenizer(data.tokenizer_dir).mask_token_id
        if mask is None:
            raise BadInput("the tokenizer has no mask token for masked language modelling", "Leave pretrain out")
        self.mask = int(mask)

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> tuple[list[Batch], int]:
        """See :meth:`Objective.micro_batches`."""
        windows = training_batch(self.tokens, **_order(self.spec, step + self.first_step))[:, :-1]
        rows = self._masked(windows, (self.spec.order_seed, step + self.first_step))
        own = _of_this_process(rows, self.spec, rank, world)
        return [self._batch(piece) for piece in own], int((rows[:, 1] != IGNORED).sum())

    def valid_batches(self) -> list[Batch]:
        """Windows from all over the valid texts, masked once."""
        pieces = _valid_windows(self.valid, self.spec)
        return [self._batch(self._masked(rows[:, :-1], (0, 0, number))) for number, rows in enumerate(pieces)]

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """(masked tokens, vocabulary): the head is applied to them alone where the architecture lets it."""
        chosen = batch["labels"] != IGNORED
        base = getattr(model, str(getattr(model, "base_model_prefix", "")), None)
        if base is not None and hasattr(model, "head") and hasattr(model, "decoder"):  # ModernBERT
            hidden = base(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            return model.decoder(model.head(hidden[chosen]))  # type: ignore[operator]
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[chosen]

    def _masked(self, windows: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
        """(rows, 2, block): what is shown, and the labels."""
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        chosen = generator.random(windows.shape) < MASKED_SHARE
        chosen[:, 0] |= ~chosen.any(axis=1)  # never a row without a target
        fate = generator.random(windows.shape)
        other = generator.integers(self.vocab_size, size=windows.shape)
        shown = np.where(chosen & (fate < 0.8), self.mask, np.where(chosen & (fate >= 0.9), other, windows))
        return np.stack([shown, np.where(chosen, windows, IGNORED)], axis=1)

    @staticmethod
    def _batch(rows: np.ndarray) -> Batch:
        inputs, labels = torch.from_numpy(rows[:, 0].copy()), torch.from_numpy(rows[:, 1].copy())
        return {"input_ids": inputs, "attention_mask": torch.ones_like(inputs), "labels": labels}


class _OfExamples(Objective):
    """Shared by the objectives on examples: length buckets, and a share of every micro-batch for each process."""

    def __init__(self, spec: TrainSpec, data: Examples) -> None:
        super().__init__(spec)
        self.data = data
        self.order = ExampleOrder(
            data, batch_tokens=spec.batch_tokens, seed=spec.order_seed, shard=spec.shard, domain=spec.domain
        )

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> tuple[list[Batch], int]:
        """See :meth:`Objective.micro_batches`."""
        examples = self.order.batch(step + self.first_step)
        pieces = micro_batches(self.data, "train", examples[rank::world], self.spec.micro_batch_tokens)
        if self.data.task == "translation":
            total = int(self.data.targets["train"].lengths[examples].sum())
        else:
            total = len(examples)
        return self._batches(step + self.first_step, examples, pieces), total

    def _batches(self, step: int, examples: Indices, pieces: list[Indices]) -> list[Batch]:
        """A batch of each of *pieces*, which are this process's part of the *examples* of *step*."""
        return [self.batch(piece) for piece in pieces]

    def pieces(self) -> list[Indices]:
        """See :meth:`Objective.pieces`."""
        return micro_batches(self.data, "train", np.sort(self.order.members), self.spec.micro_batch_tokens)

    def target_counts(self) -> Indices:
        """The tokens of each translation; of each text to classify, its class alone."""
        if self.data.task == "translation":
            return np.asarray(self.data.targets["train"].lengths, dtype=np.int64)
        return np.ones(self.data.count("train"), dtype=np.int64)

    def _collated(self, members: Indices) -> Batch:
        return collate(self.data, "train", members)

    def valid_batches(self) -> list[Batch]:
        """Examples from all over the valid split."""
        if not self.data.count("valid"):
            return []
        return heldout_batches(
            self.data, "valid", limit_tokens=_VALID_EXAMPLE_TOKENS, batch_tokens=self.spec.micro_batch_tokens
        )


class Classification(_OfExamples):
    """The class of a text. With ``class_weights = "balanced"`` every class has the same share in the loss.

    With *token_splits* or *token_dropout* a text is seen changed in training (:mod:`ract.train.augment`); how, follows
    from the step and the step's examples alone.
    """

    def __init__(self, spec: TrainSpec, data: Examples) -> None:
        super().__init__(spec, data)
        self.augmentation = None
        if spec.token_splits or spec.token_dropout:
            self.augmentation = Augmentation(
                load_tokenizer(data.tokenizer_dir),
                splits=spec.token_splits,
                dropout=spec.token_dropout,
                max_tokens=data.max_tokens,
            )
        self.weights = None
        if spec.class_weights == "balanced":
            counts = np.bincount(data.label_ids["train"][self.order.members], minlength=len(data.labels))
            self.weights = torch.from_numpy(counts.sum() / (len(counts) * np.maximum(counts, 1))).float()

    def _batches(self, step: int, examples: Indices, pieces: list[Indices]) -> list[Batch]:
        batches = super()._batches(step, examples, pieces)
        if self.augmentation is None:
            return batches
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.spec.order_seed, step))))
        rows = self.augmentation([self.data.tokens["train"][i] for i in examples.tolist()], generator)
        shown = dict(zip(examples.tolist(), rows, strict=True))
        for batch, piece in zip(batches, pieces, strict=True):
            inputs, mask = padded([shown[i] for i in piece.tolist()], self.data.pad_token_id)
            batch |= {"input_ids": torch.from_numpy(inputs), "attention_mask": torch.from_numpy(mask)}
        return batches

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """(texts, classes)."""
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def loss_sum(self, logits: torch.Tensor, targets: torch.Tensor, *, training: bool) -> torch.Tensor:
        """See :meth:`Objective.loss_sum`."""
        if not training or self.weights is None:
            return super().loss_sum(logits, targets, training=training)
        return F.cross_entropy(
            logits.float(),
            targets,
            self.weights.to(logits.device),
            reduction="sum",
            label_smoothing=self.spec.label_smoothing,
        )


class Translation(_OfExamples):
    """Each token of the translation from the source and the tokens before it."""

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """(target tokens, vocabulary)."""
        texts = {key: batch[key] for key in ("input_ids", "attention_mask")}
        shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if shift is None:  # given labels, the model shifts them itself; its own loss is not used
            return model(**texts, labels=batch["labels"], use_cache=False).logits[batch["labels"] != IGNORED]
        texts["decoder_input_ids"] = shift(batch["labels"])
        if getattr(model.config, "model_type", "") not in _HEAD_APART:
            return model(**texts, use_cache=False).logits[batch["labels"] != IGNORED]
        hidden = model.model(**texts, use_cache=False).last_hidden_state  # type: ignore[operator]
        logits = model.lm_head(hidden[batch["labels"] != IGNORED])  # type: ignore[operator]
        bias = model.final_logits_bias
        return logits + bias if bias.any() else logits  # type: ignore[operator]


def build_objective(spec: TrainSpec, data: Corpus | Examples) -> Objective:
    """The objective that *spec* names, on *data*."""
    if isinstance(data, Corpus):
        return NextToken(spec, data.tokens["train"], data.tokens["valid"])
    kinds: dict[str, Any] = {"masked": MaskedTokens, "classification": Classification, "translation": Translation}
    return kinds[spec.objective](spec, data)


def _order(spec: TrainSpec, step: int) -> dict[str, Any]:
    """Which windows training step *step* reads, for :mod:`ract.data.batches`."""
    windows = spec.batch_tokens // spec.block_size
    return {
        "step": step,
        "batch_size": windows,
        "block_size": spec.block_size,
        "seed": spec.order_seed,
        "shard": spec.shard,
    }


def _of_this_process(rows: np.ndarray, spec: TrainSpec, rank: int, world: int) -> list[np.ndarray]:
    """The *rows* of process *rank*, in pieces of a micro-batch."""
    own = len(rows) // world
    pieces = max(1, own * spec.block_size // spec.micro_batch_tokens)
    if len(rows) % world or own % pieces:
        raise BadInput(
            f"a batch of {len(rows)} windows does not divide among {world} processes",
            "Change batch_tokens or the number of processes",
        )
    return np.split(rows[rank::world], pieces)


def _shifted(rows: np.ndarray) -> Batch:
    windows = torch.from_numpy(rows)
    return {"input_ids": windows[:, :-1], "labels": windows[:, 1:]}


def _valid_windows(valid: np.ndarray | None, spec: TrainSpec) -> list[np.ndarray]:
    if valid is None or len(valid) < 2:
        return []
    block = min(spec.block_size, len(valid) - 1)
    count = min(window_count(valid, block), max(1, VALID_TOKENS // block))
    windows = training_batch(valid, step=0, batch_size=count, block_size=block, seed=0)
    rows = max(1, spec.micro_batch_tokens // block)
    return [windows[i : i + rows] for i in range(0, count, rows)]
