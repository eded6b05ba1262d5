"""An exported model against its original: the same tokens through both, before the export counts as done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ract.checkpoint.live import quiet
from ract.data.heldout import load_batches
from ract.export.source import Source
from ract.runtime.engines.base import Graphs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TASKS = {"decoder": "language-modeling", "encoder": "classification", "encoder-decoder": "translation"}
_TOLERANCE = 1e-3  # largest difference of a probability, fp32 against fp32
_TOKENS = 50
_LENGTH, _ROWS = 64, 4  # of a sample that is made up
_BATCHES = 32  # of held-out data at most


@dataclass(frozen=True)
class Sample:
    """Tokens to compare on: *batches* for ``model(**batch)`` with int64 (rows, tokens); *held_out*: they have labels
    of real data, so that their loss says something.
    """

    batches: list[dict[str, torch.Tensor]]
    held_out: bool


def sample(source: Source, data: Sequence[str] = ()) -> Sample:
    """Batches of the files *data*; without any, what the model writes itself (a classifier: tokens at random).

    Raises BadInput for data of another form than the model's task has.
    """
    limit = source.limit or 10**9
    if data:
        length = min(4 * _LENGTH, limit)
        found = load_batches(source.directory, _TASKS[source.kind], data, block_size=length, limit=_BATCHES)
        return Sample(found, held_out=True)
    generator = torch.Generator().manual_seed(0)
    vocabulary = source.model.get_input_embeddings().weight.shape[0]
    length = min(_LENGTH, limit // 2)
    ids = torch.randint(min(300, vocabulary // 2), vocabulary, (_ROWS, length), generator=generator)
    mask = torch.ones_like(ids)
    if source.kind == "decoder":
        ids = _written(source.model, ids[:, :1], length, generator)
        return Sample([{"input_ids": ids, "attention_mask": mask, "labels": ids.clone()}], held_out=False)
    mask[0, length // 2 :] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if source.kind == "encoder-decoder":
        with torch.inference_mode(), quiet():
            written = source.model.generate(**batch, num_beams=1, do_sample=False, max_new_tokens=min(24, length))
        batch["labels"] = written[:, 1:].clone()
    return Sample([batch], held_out=False)


def compare(model: PreTrainedModel, exported: Graphs, given: Sample) -> dict[str, Any]:
    """Run *model* and *exported* on the same tokens.

    Returns ``kl`` (mean KL of the next-token or class distributions, nats), ``top1`` (share of equal first choices),
    ``largest_difference`` of a probability, ``same`` (whether that is rounding), for held-out data ``loss`` and
    ``loss_exported`` (nats a token or text), and for models that write ``greedy``: how many of fifty greedy tokens are
    the same before the first difference, and ``greedy_of``.
    """
    kl, top1, worst, count, losses = 0.0, 0.0, 0.0, 0, np.zeros(2)
    for batch in given.batches:
        reference, found, labels = _both(model, exported, batch)
        p, q = torch.log_softmax(reference.double(), -1), torch.log_softmax(torch.from_numpy(found).double(), -1)
        kl += float((p.exp() * (p - q)).sum())
        top1 += float((p.argmax(-1) == q.argmax(-1)).sum())
        worst = max(worst, float((p.exp() - q.exp()).abs().max()))
        if labels is not None:
            losses += [-float(x.gather(-1, labels[:, None]).sum()) for x in (p, q)]
        count += len(p)
    measured: dict[str, Any] = {
        "kl": kl / count,
        "top1": top1 / count,
        "largest_difference": worst,
        "same": worst <= _TOLERANCE,
        "positions": count,
    }
    if given.held_out:
        measured |= {"loss": losses[0] / count, "loss_exported": losses[1] / count}
    if exported.manifest.kind != "encoder":
        prompt = given.batches[0]["input_ids"][-1:]
        measured["greedy"], measured["greedy_of"] = greedy_agreement(model, exported, prompt)
    return measured


def greedy_agreement(model: PreTrainedModel, exported: Graphs, prompt: torch.Tensor) -> tuple[int, int]:
    """How many greedy tokens after *prompt* (1, tokens) are the same in both before the first difference, and of how
    many (fifty, or as many as the model has room for).
    """
    decoder = exported.manifest.kind == "decoder"
    prompt = prompt[:, : max(1, prompt.shape[1] // 2)] if decoder else prompt
    limit = exported.manifest.limit or 10**9
    tokens = max(0, min(_TOKENS, limit - (prompt.shape[1] if decoder else 1) - 1))
    state = exported.begin() if decoder else exported.begin(prompt.numpy(), np.ones_like(prompt.numpy()))
    feed = prompt.numpy() if decoder else np.full((1, 1), exported.manifest.start or 0)
    for number, right in enumerate(_greedy(model, prompt, exported.manifest.start, tokens)):
        logits, state = exported.step(feed, state)
        if int(logits[0].argmax()) != right:
            return number, tokens
        feed = np.array([[right]], dtype=np.int64)
    return tokens, tokens


@torch.inference_mode()
def _greedy(model: PreTrainedModel, prompt: torch.Tensor, start: int | None, tokens: int) -> Iterator[int]:
    """The *tokens* likeliest tokens one after another, whatever ends a text."""
    shown: dict[str, Any] = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    written = prompt if start is None else torch.full((1, 1), start)
    for _ in range(tokens):
        given = {"input_ids": written, "attention_mask": torch.ones_like(written)}
        inputs = given if start is None else {**shown, "decoder_input_ids": written}
        token = int(model(**inputs, use_cache=False).logits[0, -1].argmax())
        yield token
        written = torch.cat([written, torch.tensor([[token]])], 1)


@torch.inference_mode()
def _both(
    model: PreTrainedModel, exported: Graphs, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, np.ndarray, torch.Tensor | None]:
    """Logits (positions, classes) of the original and of the export wherever there is a target, and the targets."""
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch.get("labels")
    numbers, shown = ids.numpy(), mask.numpy()
    if exported.manifest.kind == "encoder":
        return model(input_ids=ids, attention_mask=mask).logits, exported.logits(numbers, shown), labels
    if exported.manifest.kind == "decoder":
        reference = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        found = _teacher_forced(exported, numbers[:, :-1], exported.begin())
        targets = ids[:, 1:]
        keep = torch.ones_like(targets, dtype=torch.bool)
    else:
        assert labels is not None
        begin = torch.full((len(ids), 1), exported.manifest.start or 0)
        inputs = torch.cat([begin, labels[:, :-1].masked_fill(labels[:, :-1] < 0, exported.manifest.pad)], 1)
        reference = model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs, use_cache=False).logits
        state = exported.begin(numbers, shown)
        found = np.stack(list(_stepwise(exported, inputs.numpy(), state)), 1)
        targets, keep = labels, labels >= 0
    return reference[keep], found[keep.numpy()], targets[keep]


def _teacher_forced(exported: Graphs, ids: np.ndarray, state: Any) -> np.ndarray:
    """A decoder's logits (rows, tokens, vocabulary), in two pieces where it can: the cache is compared too."""
    if not hasattr(exported, "scores"):
        return np.stack(list(_stepwise(exported, ids, state)), 1)
    half = max(1, ids.shape[1] - 3)
    first, state = exported.scores(ids[:, :half], state)
    if half == ids.shape[1]:
        return first
    return np.concatenate([first, exported.scores(ids[:, half:], state)[0]], 1)


def _stepwise(exported: Graphs, ids: np.ndarray, state: Any) -> Iterator[np.ndarray]:
    for position in range(ids.shape[1]):
        logits, state = exported.step(ids[:, position : position + 1], state)
        yield logits


@torch.inference_mode()
def _written(model: PreTrainedModel, ids: torch.Tensor, length: int, generator: torch.Generator) -> torch.Tensor:
    """*ids* (rows, 1) continued to *length* tokens drawn from the model's own distribution."""
    while ids.shape[1] < length:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, -1]
        ids = torch.cat([ids, torch.multinomial(logits.float().softmax(-1), 1, generator=generator)], 1)
    return ids
