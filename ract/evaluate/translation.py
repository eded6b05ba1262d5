"""How well a translator does: BLEU and chrF with their signatures, and the ways in which translations go wrong."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BatchEncoding, PreTrainedTokenizerBase

from ract.checkpoint.live import quiet
from ract.data.batches import by_length, padded
from ract.data.tokenizer import target_tokenizer
from ract.errors import BadInput
from ract.evaluate.classification import encode, positions
from ract.evaluate.loading import check_vocabulary

Progress = Callable[[str, int, int], None]
_SHOWN = 20
_LOOP = 3  # the same three words or characters so many times in a row are a loop


def evaluate_translator(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    references: Sequence[str],
    *,
    source_language: str,
    target_language: str,
    num_beams: int = 4,
    batch_size: int = 32,
    domains: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Translate *sources* and compare with *references*.

    ``bleu`` and ``chrf`` (sacrebleu, 0–100; Post 2018) with ``bleu_signature`` and ``chrf_signature``;
    ``nats_per_token`` of the references; ``length_ratio`` (characters, output ÷ reference); how many outputs are
    ``empty``, ``copies`` of their source, ``too_long`` (cut at the limit) or ``repeated`` (end in a loop);
    ``examples``; the first twenty ``outputs``; with *domains* (one name a sentence), ``by_domain``.
    """
    if not sources:
        raise BadInput("there are no sentences to evaluate on", "Give more held-out data")
    outputs, cut = translate(model, tokenizer, sources, num_beams=num_beams, batch_size=batch_size, progress=progress)
    found: dict[str, Any] = {
        **scores(outputs, references, target_language),
        "nats_per_token": reference_loss(model, tokenizer, sources, references, batch_size=batch_size),
        "length_ratio": sum(map(len, outputs)) / max(1, sum(map(len, references))),
        "empty": sum(not output.strip() for output in outputs),
        "copies": sum(o.strip() == s.strip() for o, s in zip(outputs, sources, strict=True)),
        "too_long": sum(cut),
        "repeated": sum(map(_loops, outputs)),
        "examples": len(sources),
        "languages": f"{source_language}-{target_language}",
        "num_beams": num_beams,
        "outputs": [
            {"source": s, "reference": r, "output": o}
            for s, r, o in list(zip(sources, references, outputs, strict=True))[:_SHOWN]
        ],
    }
    if domains is not None:
        found["by_domain"] = {}
        for domain in dict.fromkeys(domains):
            own = [i for i, one in enumerate(domains) if one == domain]
            part = scores([outputs[i] for i in own], [references[i] for i in own], target_language)
            found["by_domain"][domain] = {"bleu": part["bleu"], "chrf": part["chrf"], "examples": len(own)}
    return found


def scores(outputs: Sequence[str], references: Sequence[str], target_language: str) -> dict[str, Any]:
    """Corpus BLEU and chrF of *outputs*, with sacrebleu's signatures."""
    from sacrebleu.metrics import BLEU, CHRF

    bleu, chrf = BLEU(tokenize=bleu_tokenizer(target_language)), CHRF()
    return {
        "bleu": bleu.corpus_score(list(outputs), [list(references)]).score,
        "chrf": chrf.corpus_score(list(outputs), [list(references)]).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }


def bleu_tokenizer(language: str) -> str:
    """sacrebleu's tokenizer for *language*: 13a for languages that write spaces."""
    code = language.lower().replace("_", "-").split("-")[0]
    if code in ("zh", "yue"):
        return "zh"
    if code in ("ja", "ko"):
        module = {"ja": "MeCab", "ko": "mecab_ko"}[code]
        return f"{code}-mecab" if importlib.util.find_spec(module) else "char"
    return "char" if code in ("th", "lo", "km", "my") else "13a"


@torch.inference_mode()
def translate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    *,
    num_beams: int = 4,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[str], list[bool]]:
    """The translation of every source by beam search, in their order, and which were cut at the limit.

    The limit is *max_new_tokens*, else twice the source's tokens and 16 more. Sources longer than the model can look at
    are cut. Sentences of like length share a batch.
    """
    limit = positions(model, tokenizer)
    encoded = [encode(tokenizer, text, limit)[0] for text in sources]
    if tokenizer.pad_token_id is None:
        batch_size = 1
    ends, done = _end_tokens(model, tokenizer), 0
    found, cut = [""] * len(sources), [False] * len(sources)
    model.eval()
    device = next(model.parameters()).device
    for chosen in by_length(encoded, batch_size):
        inputs, mask = map(torch.from_numpy, padded([encoded[i] for i in chosen], tokenizer.pad_token_id or 0))
        check_vocabulary(int(inputs.max()), model, tokenizer.name_or_path)
        longest = inputs.shape[1]
        new = max_new_tokens or 2 * longest + 16
        new = min(new, limit - 1) if limit else new
        with quiet():  # it remarks on every limit that differs from the saved one
            rows = model.generate(  # type: ignore[operator]
                input_ids=inputs.to(device),
                attention_mask=mask.to(device),
                num_beams=num_beams,
                max_new_tokens=new,
                do_sample=False,
            )
        for i, row in zip(chosen, rows.tolist(), strict=True):
            found[i] = tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
            cut[i] = not ends.intersection(row[1:])
        done += len(chosen)
        if progress:
            progress("translate", done, len(sources))
    return found, cut


@torch.inference_mode()
def reference_loss(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    references: Sequence[str],
    *,
    batch_size: int = 32,
) -> float:
    """Mean cross-entropy in nats per token of *references* given *sources*, the end of the sentence counted."""
    limit = positions(model, tokenizer)
    device = next(model.parameters()).device
    total = count = 0.0
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    size = batch_size if tokenizer.pad_token_id is not None else 1
    reads = _for_targets(tokenizer)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        options = {"truncation": limit is not None, "max_length": limit, "split_special_tokens": True}
        batch = tokenizer([sources[i] for i in chosen], padding=size > 1, return_tensors="pt", **options)
        target = reads([references[i] for i in chosen], padding=size > 1, return_tensors="pt", **options)
        labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
        inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask")}
        tokens = int((labels != -100).sum())
        total += float(model(**inputs, labels=labels.to(device), use_cache=False).loss) * tokens
        count += tokens
    loss = total / count
    if not math.isfinite(loss):
        raise BadInput("the loss on the references is not finite", "The model holds NaN or infinite weights")
    return loss


def _for_targets(tokenizer: PreTrainedTokenizerBase) -> Callable[..., BatchEncoding]:
    """What reads references: a tokenizer of their own, or *tokenizer* as it reads targets."""
    from transformers import PreTrainedTokenizerFast

    backend = target_tokenizer(Path(tokenizer.name_or_path))
    if backend is None:
        return lambda texts, **options: tokenizer(text_target=texts, **options)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=tokenizer.pad_token, eos_token=tokenizer.eos_token
    )


def _end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    config = getattr(model, "generation_config", None)
    end = getattr(config, "eos_token_id", None)
    ends = end if isinstance(end, list) else [end, tokenizer.eos_token_id]
    return {number for number in ends if number is not None}


def _loops(text: str) -> bool:
    """Whether *text* ends in the same one to eight words (of a script without spaces, characters) over and over."""
    words = text.split() if " " in text.strip() else list(text)
    return any(
        len(words) > length * _LOOP
        and all(words[-length:] == words[-length * (k + 1) : -length * k] for k in range(1, _LOOP))
        for length in range(1, 9)
    )
