"""How fast an exported model runs on this machine and in what memory: measured once, in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ract.errors import BadInput, RactError
from ract.machine import cache_folder, fingerprint, peak_memory_bytes, processors
from ract.runtime.beam import search
from ract.runtime.engines.base import open_graphs
from ract.runtime.manifest import FILE_NAME, read_manifest

_PROMPT, _STEPS, _ROUNDS = 32, 32, 5
_TEXT, _SENTENCE, _BEAMS = 64, 16, 4  # tokens of a classifier's text and of a translator's sentence


@dataclass(frozen=True)
class Measured:
    """*latency_ms*: a token of a decoder (greedy, after a prompt of 32), a text of 64 tokens of a classifier, a
    sentence of 16 tokens of a translator (4 beams, as many tokens out); medians. *peak_memory_bytes* is the whole
    process's, 0 where the system does not say; *load_ms* the time until the engine was ready; *threads* of one
    operation.
    """

    size_bytes: int
    latency_ms: float
    peak_memory_bytes: int
    load_ms: float
    threads: int


def measure(directory: str | Path, *, threads: int = 1) -> Measured:
    """Measure the exported model in *directory* in a fresh process; see :class:`Measured`.

    Raises BadInput as opening it does, RactError when it cannot be run.
    """
    asked = json.dumps({"directory": str(directory), "threads": threads})
    command = [sys.executable, "-m", "ract.runtime.measure"]
    done = subprocess.run(command, input=asked, capture_output=True, encoding="utf-8", check=False)
    if done.returncode == BadInput.exit_code and done.stdout:
        raise BadInput(*json.loads(done.stdout))
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RactError(f"measuring {directory} failed: {last}", "Less memory may be free than the model needs")
    return Measured(**json.loads(done.stdout))


def measured_here(directory: Path, *, threads: int | None = None) -> Measured:
    """:func:`measure`, kept in the user's cache folder for this machine and this export.

    Without *threads*, one thread and as many as there are processors are both tried, and the faster is given: on a
    small model or a busy machine more threads are often slower.
    """
    asked = [threads] if threads else sorted({1, processors()})
    found = [_cached(directory, count) for count in asked]
    return min(found, key=lambda one: one.latency_ms)


def _cached(directory: Path, threads: int) -> Measured:
    manifest = (directory / FILE_NAME).read_bytes() if (directory / FILE_NAME).is_file() else b""
    file = cache_folder() / f"measured-{fingerprint(manifest, threads)}.json"
    try:
        return Measured(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    found = measure(directory, threads=threads)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(f".{time.time_ns()}")
        aside.write_text(json.dumps(asdict(found)), encoding="utf-8")
        aside.replace(file)
    except OSError:  # a machine whose home cannot be written to measures again the next time
        pass
    return found


def measure_in_process(directory: Path, *, threads: int) -> Measured:
    """:func:`measure` in this process, whose peak memory then counts whatever it did before."""
    begin = time.perf_counter()
    model = open_graphs(directory, threads=threads)
    ready = time.perf_counter()
    kind = model.manifest.kind
    work = {"decoder": _decode, "encoder": _classify, "encoder-decoder": _translate}[kind]
    latency = 1000 * work(model)
    names = [*read_manifest(directory, verify=False).files, FILE_NAME]
    size = sum((directory / name).stat().st_size for name in names)
    return Measured(size, latency, peak_memory_bytes() or 0, 1000 * (ready - begin), threads)


def _ids(model: Any, tokens: int) -> np.ndarray:
    """A text of *tokens* tokens: which they are makes no difference to the time, but they must exist."""
    limit = model.manifest.limit or tokens
    return np.full((1, max(1, min(tokens, limit // 2))), model.manifest.pad, np.int64)


def _decode(model: Any) -> float:
    """Seconds a token, after a prompt."""
    prompt = _ids(model, _PROMPT)
    steps = min(_STEPS, (model.manifest.limit or 10**9) - prompt.shape[1])
    times = []
    for _ in range(_ROUNDS):
        logits, state = model.step(prompt, model.begin())
        begin = time.perf_counter()
        for _ in range(steps):
            logits, state = model.step(logits.argmax(-1).astype(np.int64)[:, None], state)
        times.append((time.perf_counter() - begin) / steps)
    return statistics.median(times[1:])


def _classify(model: Any) -> float:
    ids = _ids(model, _TEXT)
    return _median(lambda: model.logits(ids, np.ones_like(ids)))


def _translate(model: Any) -> float:
    manifest = model.manifest
    ids = _ids(model, _SENTENCE)

    def sentence() -> None:
        state = model.begin(ids, np.ones_like(ids))
        search(model, state, 1, start=manifest.start or 0, ends=(), num_beams=_BEAMS, max_new_tokens=ids.shape[1])

    return _median(sentence)


def _median(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(3 * _ROUNDS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def _main() -> int:
    asked = json.loads(sys.stdin.read())
    try:
        print(json.dumps(asdict(measure_in_process(Path(asked["directory"]), threads=asked["threads"]))))
    except BadInput as error:
        print(json.dumps([error.problem, error.remedy]))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main())
