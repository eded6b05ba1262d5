"""Carry a recipe out, out of core: memory does not grow with the size or the number of the children.

The output is laid out first; the children are then read in chunks into buffers that are used again, summed, and
written at their offsets (:mod:`ract.aggregate.kernel`). Neighbouring tensors with the same formula and the same
neighbours in every file become one flat pass. Only a tensor whose formula is a function of whole tensors is held whole.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ract.aggregate.kernel import BYTES_PER_ELEMENT, Kernel, NotFinite
from ract.aggregate.recipe import Recipe, TensorRecipe
from ract.aggregate.segments import Segment, cause, segments
from ract.checkpoint.crashpoints import crash_point
from ract.checkpoint.directory import ModelDirectory, write_text
from ract.checkpoint.tensors import DTYPES, TensorReader
from ract.checkpoint.writer import DEFAULT_SHARD_BYTES, Layout, TensorWriter, lay_out
from ract.errors import BadInput, RactError

Progress = Callable[[str, int, int], None]

CHUNK_ELEMENTS = 1 << 17
_LEAST_ELEMENTS = 1 << 12
_THREADS = min(4, os.cpu_count() or 1)
# A function holds its inputs in fp32, as much again for what it derives from them, and a few tensors of its own.
_FUNCTION_COPIES, _FUNCTION_EXTRA = 2, 4

COMPANIONS = ("*token*.json", "*token*.model", "vocab*", "merges.txt", "*.spm", "spiece.model", "sentencepiece*.model",
              "generation_config.json", "chat_template*", "*processor_config.json")  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """What carrying a recipe out takes, in bytes. *peak_memory* is anonymous memory above the process itself."""

    bytes_read: int
    bytes_written: int
    disk_needed: int
    peak_memory: int


def estimate(recipe: Recipe, children: Sequence[ModelDirectory], *, max_memory_bytes: int | None = None) -> Estimate:
    """What :func:`execute` would read, write, need on the disk and hold in memory, from the headers alone.

    Raises BadInput as :func:`execute` does for what can be seen in the headers.
    """
    readers = [TensorReader.of(child) for child in children]
    layout = plan_output(recipe, readers, Path())
    segments(recipe, readers, layout)
    elements, threads, whole = _budget(recipe, readers, max_memory_bytes)
    read = sum(readers[term.child].infos[term.name].size_bytes for tensor in recipe.tensors for term in tensor.terms)
    companions = sum(path.stat().st_size for path in companion_files(children[0].path))
    small = companions + len(json.dumps(recipe.config)) + (1 << 16)
    return Estimate(
        read, layout.size_bytes, layout.size_bytes + small, max(elements * BYTES_PER_ELEMENT * threads, whole)
    )


def execute(
    recipe: Recipe,
    children: Sequence[ModelDirectory],
    staging: Path,
    *,
    max_memory_bytes: int | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write the parent into *staging*: weights, ``config.json``, the first child's tokenizer and generation files.

    *max_memory_bytes* bounds the memory taken above the process itself. *progress* is told bytes written of all.
    Raises BadInput, naming file and tensor, for a damaged child, a tensor that is absent, has another shape than its
    recipe says, or holds NaN or infinities, and for a tensor function that does not fit in *max_memory_bytes*.
    """
    readers = [TensorReader.of(child) for child in children]
    layout = plan_output(recipe, readers, staging, max_shard_bytes)
    passes = segments(recipe, readers, layout)
    elements, threads, _ = _budget(recipe, readers, max_memory_bytes)
    report = _Report(progress, sum(slot.size_bytes for slot in layout.slots.values()))
    write_text(staging / "config.json", json.dumps(recipe.config, indent=2) + "\n")
    for path in companion_files(children[0].path):
        shutil.copyfile(path, staging / path.name)
    with TensorWriter(layout) as writer:
        _stream(passes, writer, elements, threads, report)
        for tensor in recipe.tensors:
            if not tensor.is_linear:
                writer.write(tensor.name, _whole(tensor, readers))
                report.add(layout.slots[tensor.name].size_bytes)
        crash_point("weights-written")
    for reader in readers:
        reader.close()


def companion_files(directory: Path) -> list[Path]:
    """The tokenizer, processor and generation files that make a checkpoint usable."""
    return sorted({path for pattern in COMPANIONS for path in directory.glob(pattern) if path.is_file()})


def plan_output(
    recipe: Recipe, readers: Sequence[TensorReader], directory: Path, max_shard_bytes: int = DEFAULT_SHARD_BYTES
) -> Layout:
    """The output's layout, in the order in which the tensors' first sources lie on the disk: reads run forward."""

    def place(tensor: TensorRecipe) -> tuple[int, str, int]:
        if not tensor.terms:
            return len(readers), "", 0
        term = tensor.terms[0]
        info = readers[term.child].infos.get(term.name)
        return (term.child, info.shard.name, info.begin) if info else (len(readers), "", 0)

    names = [tensor.name for tensor in recipe.tensors]
    if len(set(names)) != len(names):
        raise RactError(f"the recipe of {recipe.method} writes a tensor twice: {max(names, key=names.count)}")
    ordered = sorted(recipe.tensors, key=place)
    return lay_out(directory, [(t.name, t.dtype, t.shape) for t in ordered], max_shard_bytes)


def _budget(recipe: Recipe, readers: Sequence[TensorReader], max_memory: int | None) -> tuple[int, int, int]:
    """Elements of a chunk, threads, and the bytes of the largest tensor function, within *max_memory*."""
    whole = 0
    for tensor in recipe.tensors:
        if tensor.is_linear:
            continue
        sizes = [readers[term.child].infos[term.name].numel * 4 for term in tensor.terms]
        out = torch.Size(tensor.shape).numel() * 4
        need = _FUNCTION_COPIES * sum(sizes) + _FUNCTION_EXTRA * max([out, *sizes])
        if max_memory is not None and need > max_memory:
            raise BadInput(
                f"{recipe.method} needs {need / 2**20:.0f} MiB of memory for tensor {tensor.name}, "
                f"{max_memory / 2**20:.0f} MiB are allowed",
                "Allow more memory, or use the linear merge, which needs a few MiB",
            )
        whole = max(whole, need)
    elements, threads = CHUNK_ELEMENTS, _THREADS
    if max_memory is not None:
        threads = max(1, min(threads, max_memory // (elements * BYTES_PER_ELEMENT)))
        elements = min(elements, max_memory // (threads * BYTES_PER_ELEMENT))
        if elements < _LEAST_ELEMENTS:
            raise BadInput(f"{max_memory} bytes of memory are too few to work in", "Allow at least 1 MiB")
    return elements, threads, whole


class _Report:
    """Progress in bytes, from any thread."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            half_before = self._done * 2 < self._total
            self._done += size
            if half_before and self._done * 2 >= self._total:
                crash_point("weights-half-written")
            if self._progress:
                self._progress("aggregate", self._done, self._total)


def _stream(passes: Sequence[Segment], writer: TensorWriter, elements: int, threads: int, report: _Report) -> None:
    chunks = ((s, start, min(elements, s.count - start)) for s in passes for start in range(0, s.count, elements))
    lock = threading.Lock()
    failed = threading.Event()

    def work() -> None:
        torch.set_num_threads(1)
        kernel = Kernel(elements)
        try:
            while not failed.is_set():
                with lock:
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                _chunk(kernel, *chunk, writer)
                report.add(chunk[2] * DTYPES[chunk[0].dtype].itemsize)
        except BaseException:
            failed.set()
            raise

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="aggregate") as pool:
            for result in [pool.submit(work) for _ in range(threads)]:
                result.result()
    finally:
        torch.set_num_threads(before)


def _chunk(kernel: Kernel, segment: Segment, start: int, count: int, writer: TensorWriter) -> None:
    def fill(number: int, buffer: memoryview) -> None:
        source = segment.sources[number]
        source.reader.read_into(source.shard, source.offset + start * source.itemsize, buffer)

    try:
        if segment.must_agree:
            data = kernel.same(fill, len(segment.sources), count, segment.dtype)
            if data is None:
                raise BadInput(
                    f"tensor {segment.name_at(start)} holds {segment.dtype} and differs between the models",
                    "Only floating-point tensors can be averaged; give models that agree in the others",
                )
        else:
            weights = [source.weight for source in segment.sources]
            data = kernel.weighted_sum(fill, [s.dtype for s in segment.sources], weights, count, segment.dtype)
    except NotFinite:
        raise cause(segment, start, count) from None
    writer.write_at(segment.file, segment.offset + start * DTYPES[segment.dtype].itemsize, data)


def _whole(tensor: TensorRecipe, readers: Sequence[TensorReader]) -> torch.Tensor:
    if tensor.constant is not None:
        value = tensor.constant()
    else:
        assert tensor.function is not None
        inputs = []
        for term in tensor.terms:
            x = readers[term.child].read(term.name).float()
            if not x.isfinite().all():
                raise BadInput(
                    f"tensor {term.name} of {readers[term.child].infos[term.name].shard} holds NaN or infinities",
                    "Train or download that model again",
                )
            inputs.append(x)
        value = tensor.function(inputs)
    if tuple(value.shape) != tensor.shape:
        raise RactError(f"the formula of {tensor.name} gives the shape {tuple(value.shape)}, not {tensor.shape}")
    value = value.to(DTYPES[tensor.dtype])
    if value.dtype.is_floating_point and not value.float().isfinite().all():
        raise BadInput(f"the formula of {tensor.name} gives NaN or numbers too large for {tensor.dtype}")
    return value
