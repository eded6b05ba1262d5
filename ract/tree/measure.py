"""What every node is measured on when it is made: held-out quality by the task's own metrics, and its latency."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ract.checkpoint.live import quiet
from ract.data.tokenizer import load_tokenizer
from ract.data.tokens import Corpus
from ract.evaluate.language_modeling import evaluate
from ract.train.device import best_device
from ract.tree.job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ract.data.examples import Examples

_EVALUATION_ROWS = 16
_SENTENCES = {"cpu": 32, "cuda": 256}  # at a time; small batches leave an accelerator waiting
_LATENCY_RUNS = 9


def measure(directory: Path, job: Job, data: Corpus | Examples) -> dict[str, Any]:
    """The held-out measures of the model in *directory*: of the test split where there is one, else of valid."""
    from ract.aggregate.loaded import load

    model = load(directory).to(best_device())
    if isinstance(data, Corpus):
        return {"task": "language-modeling", **_language_model(model, job, data)}
    if job.node.method == "pretrain":
        return {"task": "masked-language-modeling", "split": "valid"}  # its valid loss stands in its history
    split = "test" if data.count("test") else "valid"
    tokenizer = load_tokenizer(data.tokenizer_dir)
    measured = {"task": data.task, "split": split, **_examples(model, tokenizer, job, data, split)}
    return measured | {"latency_ms": _latency_ms(model.cpu(), tokenizer, data, split)}


def _language_model(model: PreTrainedModel, job: Job, data: Corpus) -> dict[str, Any]:
    split = "test" if len(data.tokens["test"]) > 1 else "valid"
    measured = evaluate(
        model,
        data.tokens[split],
        data.bytes[split],
        block_size=256,
        batch_size=_EVALUATION_ROWS,
        limit_tokens=job.test_tokens,
        token_bytes=data.token_bytes,
        separator=data.separator,
        device=model.device,
    )
    return {"split": split, **measured}


def _examples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, job: Job, data: Examples, split: str
) -> dict[str, Any]:
    rows = data.sample(split, job.test_examples)
    domains = [row["domain"] for row in rows] if data.domains else None
    if data.task == "classification":
        from ract.evaluate.classification import evaluate_classifier

        return evaluate_classifier(
            model,
            tokenizer,
            [row["text"] for row in rows],
            [data.labels.index(row["label"]) for row in rows],
            max_tokens=data.max_tokens,
            domains=domains,
        )
    from ract.evaluate.translation import evaluate_translator

    return evaluate_translator(
        model,
        tokenizer,
        [row["source"] for row in rows],
        [row["target"] for row in rows],
        source_language=job.source_language,
        target_language=job.target_language,
        batch_size=_SENTENCES[model.device.type],
        domains=domains,
    )


@torch.inference_mode()
def _latency_ms(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Examples, split: str) -> float:
    """Milliseconds for one text of median length by itself, on one processor; a translation with one beam."""
    row = sorted(data.rows(split)[:200], key=lambda row: len(row.get("text") or row["source"]))[
        min(200, data.count(split)) // 2
    ]
    text = row.get("text") or row["source"]
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=data.max_tokens)
    inputs.pop("token_type_ids", None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    try:
        for _ in range(2 + _LATENCY_RUNS):
            begin = time.perf_counter()
            if data.task == "translation":
                with quiet():
                    model.generate(**inputs, num_beams=1, max_new_tokens=2 * inputs["input_ids"].shape[1] + 8)
            else:
                model(**inputs)
            times.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(times[2:])
