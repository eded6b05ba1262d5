"""From a recipe to flat passes: runs of elements with one formula, contiguous in every file they touch."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ract.aggregate.recipe import Recipe, TensorRecipe
from ract.checkpoint.tensors import DTYPES, FLOATS, TensorInfo, TensorReader, itemsize
from ract.checkpoint.writer import Layout
from ract.errors import BadInput, RactError


@dataclass(frozen=True, slots=True)
class Source:
    """A run of elements of *dtype* in a child's *shard* from byte *offset* on, which enters the sum with *weight*."""

    reader: TensorReader
    shard: Path
    offset: int
    dtype: str
    weight: float

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return itemsize(self.dtype)


@dataclass(frozen=True, slots=True)
class Segment:
    """*count* elements of the output file *file* from byte *offset* on, which hold one formula of *sources*.

    *starts* and *names* say which tensors it covers. With *must_agree* the sources are equal bytes to be copied: one
    tensor that is taken as it is, or integers and booleans, of which there is no average.
    """

    sources: tuple[Source, ...]
    file: Path
    offset: int
    dtype: str
    count: int
    must_agree: bool
    starts: tuple[int, ...]
    names: tuple[str, ...]

    def name_at(self, element: int) -> str:
        """The tensor that *element* belongs to."""
        return self.names[bisect.bisect_right(self.starts, element) - 1]


def segments(recipe: Recipe, readers: Sequence[TensorReader], layout: Layout) -> list[Segment]:
    """The flat passes for all linear tensors of *recipe*, in the order of the output.

    Raises BadInput when a term's tensor is absent or has another shape or a kind of dtype that does not fit.
    """
    by_name = {tensor.name: tensor for tensor in recipe.tensors}
    for tensor in recipe.tensors:
        for term in tensor.terms:
            _source_info(readers[term.child], term.name)
    runs: list[list[Segment]] = []
    for name, slot in layout.slots.items():
        if by_name[name].is_linear and slot.numel:
            piece = _segment(by_name[name], slot, readers)
            if runs and _continues(runs[-1][-1], piece):
                runs[-1].append(piece)
            else:
                runs.append([piece])
    return [_joined(run) for run in runs]


def _source_info(reader: TensorReader, name: str) -> TensorInfo:
    info = reader.infos.get(name)
    if info is None:
        where = next(iter(reader.infos.values())).shard.parent if reader.infos else "an empty checkpoint"
        raise BadInput(f"{where} has no tensor {name}, which the other models have",
                       "Give models of one architecture, saved from the same class")  # fmt: skip
    return info


def _segment(tensor: TensorRecipe, slot: TensorInfo, readers: Sequence[TensorReader]) -> Segment:
    sources = []
    for term in tensor.terms:
        info = _source_info(readers[term.child], term.name)
        if info.shape != tensor.shape:
            raise BadInput(
                f"tensor {term.name} of {info.shard.parent} has the shape {info.shape}, not {tensor.shape}",
                "Give models of one size; models of different sizes can only be put in an ensemble",
            )
        sources.append(Source(readers[term.child], info.shard, info.begin, info.dtype, term.weight))
    if not sources:
        raise RactError(f"the recipe of {tensor.name} has no terms")
    floats = [source.dtype in FLOATS for source in sources]
    as_it_is = len(sources) == 1 and sources[0].weight == 1.0 and sources[0].dtype == tensor.dtype
    if not all(floats) or tensor.dtype not in FLOATS:
        kinds = {source.dtype for source in sources} | {tensor.dtype}
        if len(kinds) > 1:
            raise BadInput(
                f"tensor {tensor.name} has dtypes that cannot be averaged: {', '.join(sorted(kinds))}",
                "Save the models in one precision",
            )
        if abs(sum(source.weight for source in sources) - 1.0) > 1e-6:
            raise BadInput(
                f"tensor {tensor.name} holds {tensor.dtype}, which cannot be scaled", "Leave this method out"
            )
        as_it_is = True
    return Segment(tuple(sources), slot.shard, slot.begin, tensor.dtype, slot.numel, as_it_is, (0,), (tensor.name,))


def _continues(before: Segment, after: Segment) -> bool:
    """Whether *after* can be read and written in one run with *before*."""
    return (
        (before.file, before.dtype, before.must_agree) == (after.file, after.dtype, after.must_agree)
        and before.offset + before.count * itemsize(before.dtype) == after.offset
        and len(before.sources) == len(after.sources)
        and all(
            (a.reader, a.shard, a.dtype, a.weight) == (b.reader, b.shard, b.dtype, b.weight)
            and a.offset + before.count * a.itemsize == b.offset
            for a, b in zip(before.sources, after.sources, strict=True)
        )
    )


def _joined(run: Sequence[Segment]) -> Segment:
    first, starts, count = run[0], [], 0
    for piece in run:
        starts.append(count)
        count += piece.count
    names = tuple(piece.names[0] for piece in run)
    return Segment(first.sources, first.file, first.offset, first.dtype, count, first.must_agree, tuple(starts), names)


def cause(segment: Segment, start: int, count: int) -> BadInput:
    """The error for a chunk that is not finite: which model and tensor holds the NaN, or which sum is too large."""
    for source in segment.sources:
        data = torch.empty(count * source.itemsize, dtype=torch.uint8)
        source.reader.read_into(source.shard, source.offset + start * source.itemsize, data.numpy().data)
        wrong = (~data.view(DTYPES[source.dtype]).isfinite()).nonzero()
        if len(wrong):
            name = segment.name_at(start + int(wrong[0]))
            return BadInput(
                f"tensor {name} of {source.shard} holds NaN or infinities", "Train or download that model again"
            )
    return BadInput(
        f"the sum for tensor {segment.name_at(start)} is too large for {segment.dtype}",
        "Use weights nearer to zero, or write the result in F32",
    )
