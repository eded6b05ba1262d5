"""Two small models trained from different seeds: the barrier between them, and what alignment does to it.

    python benchmarks/alignment.py

Both read the same stories, in another order; units are matched on text of the valid split and every loss is taken on
the test split. Two branches of the first model are the control that merges without more; with the units of one
shuffled, they merge again after alignment.
Writes ``results/alignment.json`` and ``results/alignment.png``.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from small_models import RESULTS, data_folder, make_tokenizer, save, tokens_of, train

from ract.aggregate.align import align
from ract.aggregate.compare import Comparison, compare, plot
from ract.aggregate.loaded import load, mean_loss, parameters
from ract.aggregate.permutation import KINDS, symmetries
from ract.aggregate.run import aggregate
from ract.cost import Shape
from ract.data.heldout import load_batches
from ract.machine import processor_name
from ract.model.anatomy import anatomy
from ract.model.compact import new_compact_transformer

SHAPE = Shape(512, 64, 2, 4, 2, 16, 192)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_400_000, help="training tokens of each model")
    tokens_each = parser.parse_args().tokens
    stories = data_folder() / "lm" / "stories"
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer = make_tokenizer([stories / "valid.txt"], SHAPE.vocab_size, folder / "tokenizer")
        paths = _train(folder, tokenizer, tokens_of(tokenizer, stories / "train.txt"), tokens_each)
        results = _measure(folder, paths, stories)
    results["seconds"] = round(time.monotonic() - started, 1)
    (RESULTS / "alignment.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


def _train(folder: Path, tokenizer: Path, tokens: Any, count: int) -> dict[str, Path]:
    paths = {}
    for seed in range(2):
        model = new_compact_transformer(SHAPE, seed=seed, max_position_embeddings=256)
        train(model, tokens, count, lr=4e-3, seed=seed)
        paths[f"seed {seed}"] = save(model, folder / f"seed{seed}", tokenizer)
        if seed == 0:
            for branch in range(2):
                own = copy.deepcopy(model)
                train(own, tokens, count // 8, lr=1e-3, seed=10 + branch, warmup=0.1)
                paths[f"branch {branch}"] = save(own, folder / f"branch{branch}", tokenizer)
    return paths


def _measure(folder: Path, paths: dict[str, Path], stories: Path) -> dict[str, Any]:
    valid, test = (
        load_batches(
            paths["seed 0"],
            "language-modeling",
            [str(stories / f"{split}.txt")],
            block_size=128,
            batch_size=16,
            limit=6,
        )
        for split in ("valid", "test")
    )
    first, second = paths["seed 0"], paths["seed 1"]
    ways: dict[str, dict[str, Any]] = {
        "weights: feed_forward": {"kinds": ["feed_forward"]},
        "weights: feed_forward, heads": {"kinds": ["feed_forward", "heads"]},
        "weights: feed_forward, heads, residual": {"kinds": KINDS},
        "activations: feed_forward, heads, residual": {"kinds": KINDS, "batches": valid},
    }
    before = compare(first, second, batches=test)
    lines = {"none": _described(before)}
    for number, (name, options) in enumerate(ways.items()):
        moved = align(first, second, folder / f"aligned{number}", **options)
        after = compare(first, moved, batches=test)
        lines[name] = _described(after)
    # The last and best way; it saw the valid split only, whereas what inspect tries sees the data it is given.
    plot(replace(before, aligned=after.line), RESULTS / "alignment.png")
    members = aggregate([first, second], folder / "ensemble", method="ensemble").path
    assert members is not None
    hidden = _permuted(paths["branch 1"], folder / "permuted")
    pairs = {
        "two seeds": before,
        "two branches of seed 0": compare(paths["branch 0"], paths["branch 1"], batches=test),
        "the same branches, the units of one shuffled": compare(paths["branch 0"], hidden, batches=test),
    }
    return {
        "machine": {"processor": processor_name(), "threads": torch.get_num_threads()},
        "model": {"hidden_size": SHAPE.hidden_size, "num_hidden_layers": SHAPE.num_hidden_layers, "vocab_size": 512},
        "two_seeds_by_alignment": lines,
        "two_seeds_as_ensemble": {"loss": round(mean_loss(load(members), test), 4)},
        "inspect": {name: _described(found) | _advice(found) for name, found in pairs.items()},
    }


def _permuted(path: Path, out: Path) -> Path:
    """The model at *path* with its units in a random order."""
    model = load(path)
    allowed = symmetries(model, anatomy(path))
    generator = torch.Generator().manual_seed(0)
    drawn = {group: index for kind in KINDS for group, index in allowed.random(kind, generator).items()}
    model.load_state_dict(allowed.apply(parameters(model), drawn), strict=False)
    return save(model, out, path)


def _advice(found: Comparison) -> dict[str, Any]:
    after = {"barrier_after_alignment": round(found.aligned.barrier, 4)} if found.aligned else {}
    return {**after, "recommendation": found.recommendation, "reason": found.reason}


def _described(found: Comparison) -> dict[str, Any]:
    assert found.line is not None
    return {
        "barrier": round(found.line.barrier, 4),
        "distance": round(found.distance or 0.0, 4),
        "loss": [round(loss, 4) for loss in found.line.loss],
    }


if __name__ == "__main__":
    main()
