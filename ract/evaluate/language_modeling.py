"""How well a language model predicts text: bits per byte, which compares models whatever their tokenizers.

Text is cut into windows of the token stream that do not overlap; each token is predicted from those before it in its
window. The tokens between documents are read but not scored: the nats are those of just the bytes they are divided by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from ract.data.batches import evaluation_batches
from ract.data.corpus import Document, documents
from ract.data.tokenizer import TextEncoder
from ract.errors import BadInput, RactError
from ract.evaluate.loading import check_vocabulary, load_causal_lm, max_positions

Progress = Callable[[str, int, int], None]
_LOGITS_AT_ONCE = 1 << 25
_BLOCK_SIZE = 512


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    tokens: npt.NDArray[Any],
    n_bytes: int,
    *,
    block_size: int,
    batch_size: int = 8,
    limit_tokens: int | None = None,
    token_bytes: npt.NDArray[np.int64] | None = None,
    separator: int | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> dict[str, float]:
    """Score *model* on the stream *tokens*: every token but the first, and but *separator*, given those before it.

    *n_bytes* are the UTF-8 bytes of the text behind ``tokens[1:]``. With *limit_tokens* only the first so many targets
    are scored, and their bytes are counted with *token_bytes* (by token number, shape ``(vocab,)``), then needed.

    Returns ``nats_per_token``, ``perplexity``, ``bits_per_byte``, and the ``tokens`` and ``bytes`` that were scored.
    Raises BadInput when there is nothing to score, RactError when the loss is not finite.
    """
    limited = limit_tokens is not None and limit_tokens < len(tokens) - 1
    if limited and token_bytes is None:
        raise ValueError("limit_tokens cuts the text: token_bytes is needed to count the bytes of what is left")
    total, scored, seen = 0.0, 0, 0
    targets_in_all = min(len(tokens) - 1, limit_tokens) if limit_tokens is not None else len(tokens) - 1
    was_training = model.training
    model.eval()
    for batch in evaluation_batches(tokens, block_size, batch_size, limit_tokens):
        windows = torch.from_numpy(batch).to(device)
        inputs, targets = windows[:, :-1], windows[:, 1:]
        # Without a mask, transformers takes a token that happens to be the padding token for padding, and warns.
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        counted = torch.ones_like(nats, dtype=torch.bool) if separator is None else targets.flatten() != separator
        total += nats[counted].double().sum().item()
        scored += int(counted.sum())
        seen += targets.numel()
        if progress:
            progress("evaluate", seen, targets_in_all)
    model.train(was_training)
    if limited and token_bytes is not None and limit_tokens is not None:
        n_bytes = int(token_bytes[np.asarray(tokens[1 : limit_tokens + 1])].sum())
    return _figures(total, scored, n_bytes)


def evaluate_directory(
    path: Path,
    files: Sequence[str],
    *,
    block_size: int | None = None,
    batch_size: int = 8,
    limit_bytes: int | None = None,
    document: Document = "auto",
    field: str = "text",
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> dict[str, float]:
    """Score the causal language model at *path*, in fp32 and with its own tokenizer, on the text of *files*.

    *files* are sources as :func:`ract.data.corpus.documents` takes them; *limit_bytes* keeps only the beginning, which
    is the same text for every model. *block_size* is by default 512, or what the model can look at, if fewer.
    Returns what :func:`evaluate` does; ``bits_per_byte`` is the figure that compares models with different tokenizers.
    """
    model, _ = load_causal_lm(path, dtype=torch.float32, device=device)
    stream, n_bytes, separator = encode_files(path, files, limit_bytes=limit_bytes, document=document, field=field)
    check_vocabulary(int(stream.max()), model, path)
    positions = max_positions(model) or _BLOCK_SIZE
    if block_size is not None and block_size > positions and max_positions(model):
        raise BadInput(
            f"block_size = {block_size} is more than the {positions} tokens that {path} can look at",
            f"Give at most {positions}",
        )
    block_size = block_size or min(_BLOCK_SIZE, positions)
    rows = model.get_input_embeddings().weight.shape[0]
    batch_size = max(1, min(batch_size, _LOGITS_AT_ONCE // (block_size * rows)))
    return evaluate(
        model,
        stream,
        n_bytes,
        block_size=block_size,
        batch_size=batch_size,
        separator=separator,
        device=device,
        progress=progress,
    )


def encode_files(
    path: Path,
    files: Sequence[str],
    *,
    limit_bytes: int | None = None,
    document: Document = "auto",
    field: str = "text",
) -> tuple[npt.NDArray[np.uint32], int, int]:
    """The text of *files* in the tokens of the model at *path*: ``(stream, UTF-8 bytes, separator)``.

    The separator is the token that begins a text where the model has one, else the one that ends it.
    """
    encoder = TextEncoder(path)
    separator = encoder.beginning if encoder.beginning is not None else encoder.separator
    pieces = [np.array([separator], dtype=np.uint32)]
    left = math.inf if limit_bytes is None else limit_bytes
    n_bytes = 0
    for text in documents(files, document=document, field=field):
        raw = text.encode("utf-8")
        kept = text if len(raw) <= left else raw[: int(left)].decode("utf-8", errors="ignore")
        pieces.append(np.array([*encoder.encode([kept])[0], separator], dtype=np.uint32))
        n_bytes += len(kept.encode("utf-8"))
        left -= len(raw)
        if left <= 0:
            break
    return np.concatenate(pieces), n_bytes, separator


def _figures(nats: float, tokens: int, n_bytes: int) -> dict[str, float]:
    if tokens == 0 or n_bytes == 0:
        raise BadInput("there is no text to evaluate on", "Give more text, or a larger test split")
    if not math.isfinite(nats):
        raise RactError("the loss on the evaluation text is not finite", "The model holds NaN or infinite weights")
    per_token = nats / tokens
    return {
        "nats_per_token": per_token,
        "perplexity": math.exp(per_token) if per_token < 700 else math.inf,
        "bits_per_byte": nats / math.log(2) / n_bytes,
        "tokens": tokens,
        "bytes": n_bytes,
    }
