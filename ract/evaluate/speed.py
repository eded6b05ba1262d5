"""How fast a model runs here and what memory that takes, measured in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from ract.checkpoint.directory import open_model
from ract.errors import BadInput, RactError
from ract.evaluate.classification import predict
from ract.evaluate.language_modeling import evaluate_directory
from ract.evaluate.loading import load_causal_lm, load_for, max_positions
from ract.evaluate.translation import translate

Progress = Callable[[str, int, int], None]


class PeakMemory:
    """The largest resident size of this process while the block runs, sampled every few milliseconds; in *bytes*."""

    def __init__(self, interval_seconds: float = 0.005) -> None:
        self._interval = interval_seconds
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, self._process.memory_info().rss)

    def _sample(self) -> None:
        while not self._done.wait(self._interval):
            self._look()


def measure(
    path: Path, *, prompt_tokens: int = 128, new_tokens: int = 64, repeats: int = 3, threads: int | None = None
) -> dict[str, float]:
    """Speed and size of the causal language model at *path*, one sequence at a time, in the precision it was saved in.

    Returns ``parameters`` (tied ones once), ``size_bytes`` (weight files), ``prefill_tokens_per_second`` (reading a
    prompt of *prompt_tokens*) and ``generation_tokens_per_second`` (*new_tokens* after it, greedy, with a key-value
    cache), medians of *repeats* after one round of warm-up, and ``peak_memory_bytes``, resident, of the whole process.
    Both lengths are cut where the model looks at fewer tokens. *threads* sets torch's for the process;
    :func:`measure_alone` keeps that, and the memory of whatever else lives here, out of it.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with PeakMemory() as peak:
        model, _ = load_causal_lm(path)
        limit = max_positions(model)
        if limit is not None:
            prompt_tokens = min(prompt_tokens, limit // 2)
            new_tokens = min(new_tokens, limit - prompt_tokens)
        rounds = [_round(model, prompt_tokens, new_tokens) for _ in range(1 + repeats)][1:]
    prefill, generation = (statistics.median(times) for times in zip(*rounds, strict=True))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "size_bytes": open_model(path).size_bytes,
        "prefill_tokens_per_second": prompt_tokens / prefill,
        "generation_tokens_per_second": new_tokens / generation,
        "peak_memory_bytes": peak.bytes,
    }


def measure_texts(
    path: Path,
    task: str,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    num_beams: int = 4,
    repeats: int = 3,
    threads: int | None = None,
) -> dict[str, float]:
    """Speed and size of the classifier or translator (*task*) at *path* on *texts*, tokenizing included.

    Returns ``parameters``, ``size_bytes`` and ``peak_memory_bytes`` as :func:`measure` does; ``latency_ms``, the median
    milliseconds for one text by itself (at most 16 of them); and ``texts_per_second``, all *texts* in batches of
    *batch_size*, the median of *repeats*. Both after a warm-up. A translation takes *num_beams*.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with PeakMemory() as peak:
        model, tokenizer = load_for(task, path)

        def seconds(some: Sequence[str]) -> float:
            begin = time.perf_counter()
            if task == "classification":
                predict(model, tokenizer, some, batch_size=batch_size)
            else:
                translate(model, tokenizer, some, batch_size=batch_size, num_beams=num_beams)
            return time.perf_counter() - begin

        seconds(texts[:1])
        single = [seconds([text]) for text in texts[:: -(-len(texts) // 16)]]
        seconds(texts)
        together = statistics.median(seconds(texts) for _ in range(repeats))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "size_bytes": open_model(path).size_bytes,
        "latency_ms": 1000 * statistics.median(single),
        "texts_per_second": len(texts) / together,
        "peak_memory_bytes": peak.bytes,
    }


def measure_alone(path: Path, **options: Any) -> dict[str, float]:
    """:func:`measure`, or with a *task* :func:`measure_texts`, in a fresh process: the peak memory is that of this
    model alone.
    """
    command = [sys.executable, "-m", "ract.evaluate.speed"]
    asked = json.dumps({"path": str(path), **options})  # texts outgrow what a command line can hold
    done = subprocess.run(command, input=asked, capture_output=True, encoding="utf-8", check=False)
    if done.returncode == BadInput.exit_code and done.stdout:
        raise BadInput(*json.loads(done.stdout))
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RactError(f"measuring {path} failed: {last}", "Less memory may be free than the model needs")
    return json.loads(done.stdout)


def compare(
    models: Sequence[Path],
    files: Sequence[str],
    *,
    limit_bytes: int | None = None,
    speed: bool = True,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One row for each of *models*: ``model`` (its path), what ``evaluate_directory`` gives on *files*, its speed."""
    rows: list[dict[str, Any]] = []
    for number, path in enumerate(models):
        if progress:
            progress(str(path), number, len(models))
        quality = evaluate_directory(path, files, limit_bytes=limit_bytes, device=device, progress=progress)
        rows.append({"model": str(path), **quality, **(measure_alone(path) if speed else {})})
    if progress:
        progress("compare", len(models), len(models))
    return rows


@torch.inference_mode()
def _round(model: PreTrainedModel, prompt_tokens: int, new_tokens: int) -> tuple[float, float]:
    """Seconds for the prompt and for the tokens after it."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    prompt = torch.arange(prompt_tokens)[None] % vocabulary  # which tokens they are makes no difference to the time
    begin = time.perf_counter()
    out = model(input_ids=prompt, attention_mask=torch.ones_like(prompt), use_cache=True)
    middle = time.perf_counter()
    for _ in range(new_tokens):
        token = out.logits[:, -1:].argmax(-1)
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
    return middle - begin, time.perf_counter() - middle


def _main() -> int:
    options = json.loads(sys.stdin.read())
    path = Path(options.pop("path"))
    try:
        print(json.dumps(measure_texts(path, **options) if "task" in options else measure(path, **options)))
    except BadInput as error:
        print(json.dumps([error.problem, error.remedy]))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main())
