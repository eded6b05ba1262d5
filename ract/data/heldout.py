"""Held-out data as batches for ``model(**batch).loss``: what α is learned on, and what models are compared on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ract.data.corpus import documents
from ract.data.rows import labelled, pairs
from ract.data.tokenizer import TextEncoder, load_tokenizer
from ract.errors import BadInput, nearest
from ract.model.live import live_config, model_class, read_config
from ract.model.task import is_made_for, task_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Batch = dict[str, torch.Tensor]
TASKS = ("language-modeling", "classification", "translation")
_MASKED_SHARE = 0.15
_IGNORED = -100  # the label that transformers leaves out of the loss


def load_batches(
    model_dir: Path,
    task: str | None,
    files: Sequence[str],
    *,
    block_size: int = 256,
    batch_size: int = 8,
    limit: int | None = None,
    seed: int = 0,
) -> list[Batch]:
    """At most *limit* batches (None: all) of *files* for the model at *model_dir*, in the files' order.

    *task* is by default what the model is made for.
    ``"language-modeling"``: text of any source; ``input_ids`` and ``labels``, int64 ``(batch, block)``, where
    a causal model predicts each next token and an encoder the 15% of its tokens that were masked (Devlin et al. 2019;
    drawn once, from *seed*). ``"classification"``: rows (JSONL, CSV, TSV, Parquet) with ``text`` and ``label`` (a
    number, or a name the model knows); ``labels`` are ``(batch,)``. ``"translation"``: rows with ``source`` and
    ``target``, or two files whose lines correspond; padding in ``labels`` is −100. Texts of the last two are cut after
    *block_size* tokens.

    Raises BadInput: a task or file that is not there, data of another form, a label the model does not have, a model
    that is not made for the task.
    """
    config = read_config(model_dir)
    task = task or task_of(config)
    if task not in TASKS:
        raise BadInput(f'there is no task "{task}"', nearest(task, TASKS))
    model = _Model(model_dir, model_class(config).__name__, live_config(config))
    block_size = min(block_size, model.positions or block_size)
    if task == "language-modeling":
        batches = _language_modeling(model, files, block_size, batch_size, seed)
    elif task == "classification":
        batches = _classification(model, labelled(files), block_size, batch_size)
    else:
        batches = _translation(model, pairs(files), block_size, batch_size)
    found = list(itertools.islice(batches, limit))
    if not found:
        raise BadInput(f"{', '.join(files)}: there is nothing to measure the model on", "Give more held-out data")
    return found


@dataclass(frozen=True)
class _Model:
    path: Path
    class_name: str
    config: PretrainedConfig

    @property
    def positions(self) -> int | None:
        limit = getattr(self.config, "max_position_embeddings", None)
        return limit if isinstance(limit, int) and limit > 0 else None


def _language_modeling(
    model: _Model, files: Sequence[str], block_size: int, batch_size: int, seed: int
) -> Iterator[Batch]:
    if is_made_for("language-modeling", model.class_name):
        for rows in _arrays(_blocks(TextEncoder(model.path), files, block_size), batch_size):
            tokens = torch.from_numpy(rows)
            yield {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.clone()}
    elif model.class_name.endswith("ForMaskedLM"):
        encoder = TextEncoder(model.path)
        blocks = _arrays(_blocks(encoder, files, block_size - 2), batch_size)  # two places for what frames a text
        yield from _masked(blocks, load_tokenizer(model.path), encoder.vocab_size, seed)
    else:
        raise BadInput(
            f"{model.path} is of class {model.class_name}, which predicts no tokens of plain text",
            "Give a …ForCausalLM or …ForMaskedLM, or the task this model is made for",
        )


def _masked(
    blocks: Iterator[np.ndarray], tokenizer: PreTrainedTokenizerBase, vocab_size: int, seed: int
) -> Iterator[Batch]:
    """Of the chosen tokens 80% become the mask, 10% another token, 10% stay, as in BERT's training."""
    mask, begin, end = tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id
    if mask is None or begin is None or end is None:
        raise BadInput(
            f"the tokenizer in {tokenizer.name_or_path} has no mask, cls or sep token", "Set it in its config"
        )
    generator = np.random.default_rng(seed)
    for rows in blocks:
        chosen = generator.random(rows.shape) < _MASKED_SHARE
        chosen[np.arange(len(rows)), generator.integers(rows.shape[1], size=len(rows))] = True  # never a row without
        fate = generator.random(rows.shape)
        other = generator.integers(vocab_size, size=rows.shape)
        shown = np.where(chosen & (fate < 0.8), mask, np.where(chosen & (fate >= 0.9), other, rows))
        labels = np.where(chosen, rows, _IGNORED)
        inputs = torch.from_numpy(np.pad(shown, ((0, 0), (1, 1)), constant_values=((0, 0), (begin, end))))
        yield {
            "input_ids": inputs,
            "attention_mask": torch.ones_like(inputs),
            "labels": torch.from_numpy(np.pad(labels, ((0, 0), (1, 1)), constant_values=_IGNORED)),
        }


def _blocks(encoder: TextEncoder, files: Sequence[str], size: int) -> Iterator[list[int]]:
    """Whole blocks of *size* tokens, documents separated; of a text shorter than a block, that one short block."""
    pending: list[int] = [encoder.separator]
    whole = False
    for text in documents(files):
        pending += [*encoder.encode([text])[0], encoder.separator]
        for start in range(0, len(pending) - size + 1, size):
            whole = True
            yield pending[start : start + size]
        pending = pending[len(pending) // size * size :]
    if not whole and len(pending) > 2:
        yield pending


def _classification(
    model: _Model, rows: Iterable[tuple[str, str, str]], block_size: int, batch_size: int
) -> Iterator[Batch]:
    if not is_made_for("classification", model.class_name):
        problem = f"{model.path} is of class {model.class_name}, which classifies no texts"
        raise BadInput(problem, "Give a …ForSequenceClassification")
    tokenizer = load_tokenizer(model.path)
    if tokenizer.pad_token_id is None or model.config.pad_token_id is None:
        batch_size = 1  # without padding only texts of equal length can share a batch
    for some in _groups(rows, batch_size):
        batch = _tokenized(tokenizer, [text for _, text, _ in some], block_size)
        batch["labels"] = torch.tensor([label_number(label, model.config, where) for where, _, label in some])
        yield batch


def label_number(label: str, config: PretrainedConfig, where: str) -> int:
    """The number of the class *label*, its name in *config* or a number; BadInput, naming *where*, when it has none."""
    number = {str(name): number for number, name in config.id2label.items()}.get(label)
    if number is None and label.isdecimal():
        number = int(label)
    if not isinstance(number, int) or not 0 <= number < config.num_labels:
        known = ", ".join(f"{number} ({text})" for number, text in sorted(config.id2label.items()))
        raise BadInput(f'{where}: the model has no label "{label}"', f"Known: {known}")
    return number


def _translation(
    model: _Model, sentences: Iterable[tuple[str, str, str]], block_size: int, batch_size: int
) -> Iterator[Batch]:
    if not is_made_for("translation", model.class_name):
        problem = f"{model.path} is of class {model.class_name}, which translates no texts"
        raise BadInput(problem, "Give an encoder-decoder model with a head (…ForConditionalGeneration)")
    tokenizer = load_tokenizer(model.path)
    if tokenizer.pad_token_id is None:
        batch_size = 1
    whole = (pair for pair in sentences if pair[1].strip() and pair[2].strip())
    for some in _groups(whole, batch_size):
        batch = _tokenized(tokenizer, [source for _, source, _ in some], block_size)
        batch.pop("token_type_ids", None)
        target = _tokenized(tokenizer, [target for _, _, target in some], block_size, target=True)
        batch["labels"] = target["input_ids"].masked_fill(target["attention_mask"] == 0, _IGNORED)
        yield batch


def _tokenized(tokenizer: PreTrainedTokenizerBase, texts: list[str], block_size: int, *, target: bool = False) -> Batch:
    encoded = tokenizer(
        **{"text_target" if target else "text": texts},
        truncation=True,
        max_length=block_size,
        padding=len(texts) > 1,
        return_tensors="pt",
    )
    return dict(encoded)


def _arrays(blocks: Iterator[list[int]], batch_size: int) -> Iterator[np.ndarray]:
    for rows in _groups(blocks, batch_size):
        yield np.array(rows, dtype=np.int64)


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some
