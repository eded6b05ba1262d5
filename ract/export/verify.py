"""An exported model against its original: the same inputs through both, before the export counts as done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ract.errors import RactError
from ract.runtime.engines.onnx import OnnxModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOLERANCE = 1e-3  # largest difference of a log-probability, fp32 against fp32
_TOKENS = 50


def compare(model: PreTrainedModel, directory: Path) -> dict[str, Any]:
    """Run *model* and the export in *directory* on the same tokens.

    Returns ``kl`` (mean KL of the next-token or class distributions, nats), ``top1`` (share of equal first choices),
    ``largest_difference`` of a probability and, for models that write, ``greedy`` (how many of fifty greedy tokens
    agree). Raises RactError when an fp32 export differs by more than rounding.
    """
    exported = OnnxModel(directory, verify=False)
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    length = 24 if not exported.manifest.limit else min(24, exported.manifest.limit // 2)
    ids = torch.randint(min(300, vocabulary // 2), vocabulary, (4, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0 if exported.manifest.kind != "decoder" else 1
    reference, found = _both(model, exported, ids, mask)
    p, q = torch.log_softmax(reference, -1), torch.log_softmax(torch.from_numpy(found), -1)
    measured: dict[str, Any] = {
        "kl": float((p.exp() * (p - q)).sum(-1).mean()),
        "top1": float((p.argmax(-1) == q.argmax(-1)).float().mean()),
        "largest_difference": float((p.exp() - q.exp()).abs().max()),
    }
    if exported.manifest.kind != "encoder":
        measured["greedy"] = greedy_agreement(model, exported, ids[1:2, : length // 2])
    if exported.manifest.precision == "fp32" and measured["largest_difference"] > _TOLERANCE:
        raise RactError(
            f"the exported model differs from the original by {measured['largest_difference']:.1e} in a probability",
            "Report this with the model's config.json: the export is wrong",
        )
    return measured


@torch.inference_mode()
def _both(
    model: PreTrainedModel, exported: OnnxModel, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, np.ndarray]:
    """Logits (rows, classes) of the original and of the export for the position after *ids*."""
    numbers, shown = ids.numpy(), mask.numpy()
    if exported.manifest.kind == "encoder":
        return model(input_ids=ids, attention_mask=mask).logits, exported.logits(numbers, shown)
    if exported.manifest.kind == "decoder":
        reference = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -1]
        _, state = exported.step(numbers[:, :-3], exported.begin())  # in two pieces: the cache is compared too
        return reference, exported.step(numbers[:, -3:], state)[0]
    start = torch.full((len(ids), 1), exported.manifest.start or 0)
    begun = torch.cat([start, ids[:, :2]], 1)
    reference = model(input_ids=ids, attention_mask=mask, decoder_input_ids=begun, use_cache=False).logits[:, -1]
    state = exported.begin(numbers, shown)
    for position in range(begun.shape[1]):
        logits, state = exported.step(begun[:, position : position + 1].numpy(), state)
    return reference, logits


@torch.inference_mode()
def greedy_agreement(model: PreTrainedModel, exported: OnnxModel, prompt: torch.Tensor) -> int:
    """How many of fifty greedy tokens after *prompt* (1, tokens) are the same in both before the first difference."""
    limit = exported.manifest.limit or 10**9
    if exported.manifest.kind == "decoder":
        state, feed = exported.begin(), prompt.numpy()
        written = prompt
    else:
        state = exported.begin(prompt.numpy(), np.ones_like(prompt.numpy()))
        written = torch.full((1, 1), exported.manifest.start or 0)
        feed = written.numpy()
    for agreed in range(min(_TOKENS, limit - written.shape[1] - 1)):
        logits, state = exported.step(feed, state)
        if exported.manifest.kind == "decoder":
            reference = model(input_ids=written, attention_mask=torch.ones_like(written), use_cache=False).logits
        else:
            reference = model(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), decoder_input_ids=written, use_cache=False
            ).logits
        right = int(reference[0, -1].argmax())
        if int(logits[0].argmax()) != right:
            return agreed
        feed = np.array([[right]], dtype=np.int64)
        written = torch.cat([written, torch.tensor([[right]])], 1)
    return min(_TOKENS, limit - prompt.shape[1] - 1)
