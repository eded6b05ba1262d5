"""What ``benchmarks/inference.py`` does in processes of their own, of this interpreter or of one that has an engine.

    PYTHON -m benchmarks.inference_processes baseline DIRECTORY THREADS | bandwidth
    PYTHON -m benchmarks.inference_processes export DIRECTORY OUT ENGINE PRECISION
    PYTHON -m benchmarks.inference_processes measure EXPORT THREADS
    PYTHON -m benchmarks.inference_processes losses RUN OUT ENGINE

Each prints its results as JSON on the last line. ``transformers`` here is the baseline of every ratio. Where the
environment has RACT_BENCHMARK_CLOCK=cpu, seconds are those of the processor.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT, STEPS, TEXT, SENTENCE, BEAMS, ROUNDS = 32, 32, 64, 16, 4, 5  # as ract.runtime.measure has them


def baseline(directory: str, threads: str) -> dict[str, float]:
    """``transformers`` in fp32 doing what :mod:`ract.runtime.measure` has engines do; the peak is the process's."""
    import torch

    from ract.checkpoint.live import load_model
    from ract.machine import peak_memory_bytes

    torch.set_num_threads(int(threads))
    model: Any = load_model(Path(directory), dtype=torch.float32)
    config = model.config
    if type(model).__name__.endswith("ForSequenceClassification"):
        ids = torch.full((1, TEXT), 5)
        latency = _median(lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids)))
    elif config.is_encoder_decoder:
        ids = torch.full((1, SENTENCE), 5)
        options = {"num_beams": BEAMS, "min_new_tokens": SENTENCE, "max_new_tokens": SENTENCE}
        latency = _median(lambda: model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options))
    else:
        ids = torch.full((1, PROMPT), 5)
        latency = _generate(model, ids)
    size = sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
    return {"latency_ms": 1000 * latency, "peak_memory_bytes": peak_memory_bytes() or 0, "size_bytes": size}


def _generate(model: Any, ids: Any) -> float:
    """Seconds a token of ``generate()``, greedy; reading the prompt is taken off."""
    import torch

    def seconds(count: int) -> float:
        begin = time.perf_counter()
        options = {"min_new_tokens": count, "max_new_tokens": count, "do_sample": False}
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
        return time.perf_counter() - begin

    seconds(2)
    return statistics.median((seconds(STEPS + 1) - seconds(1)) / STEPS for _ in range(ROUNDS))


def _median(work: Callable[[], Any]) -> float:
    import torch

    times = []
    with torch.inference_mode():
        for _ in range(2 * ROUNDS):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def bandwidth() -> dict[str, float]:
    """Bytes a second that one thread reads from memory: the product of two long vectors, the best of ten."""
    import numpy as np

    a, b = (np.ones(64 * 1024**2, np.float32) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        np.dot(a, b)
        best = min(best, time.perf_counter() - begin)
    return {"bytes_per_second": 2 * a.nbytes / best}


def export(directory: str, out: str, engine: str, precision: str) -> dict[str, Any]:
    """How far the export of *directory* that is written to *out* is from the original; or why it is refused."""
    from ract.errors import RactError
    from ract.export.export import export as write

    try:
        return write(directory, out, format=engine, precision=precision, force=True).measured  # type: ignore[arg-type]
    except RactError as error:
        return {"refused": str(error).replace(directory, "the model")}


def measure(directory: str, threads: str) -> dict[str, Any]:
    """The cost of the export in *directory*; or why it cannot be run."""
    from ract.errors import RactError
    from ract.runtime.measure import measure_in_process

    try:
        one = measure_in_process(Path(directory), threads=int(threads))
    except RactError as error:
        return {"failed": str(error)}
    kept = ("latency_ms", "peak_memory_bytes", "size_bytes")
    return {key: getattr(one, key) for key in kept}


def losses(run: str, out: str, engine: str) -> dict[str, dict[str, float]]:
    """Held-out loss of the worthwhile nodes of *run* in the precisions that *engine* has; its exports go to *out*."""
    from ract.errors import BadInput
    from ract.runtime.manifest import read_manifest
    from ract.tree.forms import PRECISIONS, export_tree

    found = {}
    for precision in PRECISIONS:
        try:
            paths = export_tree(run, out, format=engine, precisions=[precision])  # type: ignore[arg-type]
        except BadInput as refusal:
            print(f"{engine} {precision}: {refusal}", file=sys.stderr)
            continue
        for path in paths:
            manifest = read_manifest(path, verify=False)
            assert manifest.held_out is not None
            loss, original = manifest.held_out.loss, manifest.held_out.loss_original
            found[f"{manifest.node} {engine} {precision}"] = {"loss": loss, "change": loss / original - 1}
    return found


if __name__ == "__main__":
    if os.environ.get("RACT_BENCHMARK_CLOCK") == "cpu":
        time.perf_counter = time.process_time
    known: dict[str, Callable[..., dict[str, Any]]] = {
        one.__name__: one for one in (baseline, bandwidth, export, measure, losses)
    }
    print("\n" + json.dumps(known[sys.argv[1]](*sys.argv[2:])))
