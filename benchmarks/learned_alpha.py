"""Learning α for four related models of 20 M parameters on a CPU: how long it takes and what it gains.

    python benchmarks/learned_alpha.py

A base is trained briefly on four domains, then a branch on each. α is learned on the valid split of two of them and
reported on their test split. Only ``learn`` is timed, opening the models included. Writes
``results/learned_alpha.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from small_models import RESULTS, data_folder, make_tokenizer, save, tokens_of, train

from ract.aggregate.weights import learn
from ract.cost import Shape
from ract.data.heldout import load_batches
from ract.machine import processor_name
from ract.model.compact import new_compact_transformer

SHAPE = Shape(4096, 512, 6, 8, 4, 64, 1408)
DOMAINS = ("stories", "wikipedia", "medical", "reviews")
MEASURED = ("stories", "reviews")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="keep the trained models here, or use those that are")
    parser.add_argument("--per", nargs="+", default=["model", "layer"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.models or Path(scratch)
        if not (folder / DOMAINS[-1]).exists():
            _train(folder)
        results = {
            "machine": {"processor": processor_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            "torch": torch.__version__,
            "models": list(DOMAINS),
            "measured_on": list(MEASURED),
            "runs": [_run([folder / domain for domain in DOMAINS], per) for per in args.per],
        }
    (RESULTS / "learned_alpha.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


def _train(folder: Path) -> None:
    text = data_folder() / "lm"
    tokenizer = make_tokenizer([text / d / "valid.txt" for d in DOMAINS], SHAPE.vocab_size, folder / "tokenizer")
    base = new_compact_transformer(SHAPE, seed=0, max_position_embeddings=512)
    mixed = [tokens_of(tokenizer, text / d / "valid.txt") for d in DOMAINS]
    train(base, torch.cat([torch.from_numpy(t) for t in mixed]).numpy(), 60 * 2048, lr=1e-3)
    for domain in DOMAINS:
        branch = copy.deepcopy(base)
        train(branch, tokens_of(tokenizer, text / domain / "train.txt")[:200_000], 25 * 2048, lr=5e-4, decay=0.0)
        save(branch, folder / domain, tokenizer)


def _run(models: list[Path], per: Any) -> dict[str, Any]:
    text = data_folder() / "lm"

    def batches(split: str, limit: int) -> list[dict[str, torch.Tensor]]:
        files = [str(text / domain / f"{split}.txt") for domain in MEASURED]
        each = [load_batches(models[0], "language-modeling", [file], limit=limit) for file in files]
        return [batch for some in each for batch in some]

    chosen_on, held_out = batches("valid", 4), batches("test", 2)
    wall, cpu, load = time.perf_counter(), time.process_time(), os.getloadavg()[0]
    found = learn(models, chosen_on, held_out, per=per)
    return {
        "per": per,
        "parameters_each": SHAPE.parameters,
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "load_before": round(load, 2),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "tokens": sum(b["labels"].numel() for b in chosen_on),
        "held_out_tokens": sum(b["labels"].numel() for b in held_out),
        "chosen": found.chosen,
        "weights": found.weights,
        "loss": found.loss,
        "loss_uniform": found.loss_uniform,
        "loss_children": found.loss_children,
        "held_out_loss": found.held_out_loss,
        "held_out_uniform": found.held_out_uniform,
        "held_out_children": found.held_out_children,
    }


if __name__ == "__main__":
    main()
