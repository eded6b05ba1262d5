"""The children of a growing method: their anatomy, and where each part's tensor lies in their files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ract.aggregate.match import Weights, alpha_for
from ract.aggregate.recipe import TensorRecipe, Term
from ract.checkpoint.directory import ModelDirectory
from ract.checkpoint.tensors import DTYPES, FLOATS, TensorInfo, TensorReader
from ract.errors import BadInput
from ract.model.anatomy import Anatomy, anatomy

# Config keys that say nothing about what a tensor means: provenance, training and generation settings.
_FREE = re.compile(r"^_|dropout|pdrop|initializer|dtype|version|use_cache|token_id|checkpointing|architectures|jitter")


@dataclass(frozen=True)
class Member:
    """A child: *names* maps the saved name of every part to the name in its files, *infos* these to their headers."""

    directory: ModelDirectory
    anatomy: Anatomy
    names: dict[str, str]
    infos: dict[str, TensorInfo]

    def info(self, name: str) -> TensorInfo:
        """The header of the part saved as *name*; a tied alias that the files do not hold is its source."""
        return self.infos[self.names.get(name) or self.names[self.anatomy.aliases[name]]]


def open_members(children: Sequence[ModelDirectory]) -> list[Member]:
    """The children with their anatomies; BadInput where weights and config of one contradict each other."""
    if not children:
        raise BadInput("no models were given", "Give at least one model directory")
    return [_member(child) for child in children]


def _member(child: ModelDirectory) -> Member:
    known = anatomy(child.config)
    with TensorReader.of(child) as reader:
        infos = reader.infos
    try:
        names = known.locate(infos)
    except BadInput as error:
        raise BadInput(f"{child.path}: {error.problem}", error.remedy) from error
    for name, stored in names.items():
        part = known.parts.get(name) or known.parts[known.aliases[name]]
        if infos[stored].shape != part.shape:
            raise BadInput(
                f"{child.path}: the tensor {stored} has the shape {infos[stored].shape}, its config says {part.shape}",
                "The config and the weights contradict each other: copy both again from their source",
            )
    return Member(child, known, names, infos)


def same_kind(members: Sequence[Member], but: Sequence[str] = ()) -> None:
    """BadInput unless all members are of one class and agree on every config field that gives weights their meaning.

    *but* names the fields that may differ (the depth).
    """
    first = members[0]
    for other in members[1:]:
        if other.anatomy.model_class != first.anatomy.model_class:
            raise BadInput(
                f"{first.directory.path} is of class {first.anatomy.model_class}, "
                f"{other.directory.path} of class {other.anatomy.model_class}",
                "Give models of one architecture, or use --method ensemble",
            )
        a, b = first.anatomy.config, other.anatomy.config
        for key in sorted(a.keys() | b.keys()):
            if key not in but and a.get(key) != b.get(key) and not _FREE.search(key):
                raise BadInput(
                    f"config.json says {key} = {a.get(key)!r:.60} in {first.directory.path} and {b.get(key)!r:.60} in "
                    f"{other.directory.path}",
                    "Blocks that compute differently cannot share a model; use --method ensemble",
                )


def blended(name: str, members: Sequence[Member], alpha: Sequence[float], shape: tuple[int, ...]) -> TensorRecipe:
    """``Σ α[i] · member[i]`` of the part saved as *name*, in the widest of the members' dtypes."""
    infos = [member.info(name) for member in members]
    for member, info in zip(members, infos, strict=True):
        if info.shape != shape:
            raise BadInput(f"{member.directory.path}: the tensor {info.name} has the shape {info.shape}, not {shape}")
    read = [(i, info, float(a)) for i, (info, a) in enumerate(zip(infos, alpha, strict=True)) if a != 0.0]
    terms = [Term(i, info.name, a) for i, info, a in read or [(0, infos[0], 0.0)]]
    return TensorRecipe(name, shape, widest([info.dtype for info in infos]), tuple(terms))


def copied(name: str, child: int, info: TensorInfo) -> TensorRecipe:
    """The tensor of one child, bit for bit, as *name*."""
    return TensorRecipe(name, info.shape, info.dtype, (Term(child, info.name),))


def blend_weights(weights: Weights, members: Sequence[Member]) -> Callable[[str], Sequence[float]]:
    """Saved name → α, the same everywhere or by group; BadInput when there is not one for each member."""
    return alpha_for(weights, [member.directory for member in members])


def plain_weights(weights: Weights, members: Sequence[Member], method: str) -> list[float]:
    """α as one list; BadInput when it differs by group, which *method* cannot express."""
    if isinstance(weights, Mapping):
        raise BadInput(f"{method} takes one weight for each model, not weights by group", "Learn them per model")
    alpha_for(weights, [member.directory for member in members])
    return [float(a) for a in weights]


def widest(dtypes: Sequence[str]) -> str:
    """The narrowest dtype that holds all of *dtypes* (safetensors' spelling)."""
    result = DTYPES[dtypes[0]]
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, DTYPES[dtype])
    return next(name for name, dtype in DTYPES.items() if dtype == result)


def with_dtype(config: dict[str, Any], members: Sequence[Member]) -> dict[str, Any]:
    """*config* saying the widest dtype of the members' weights, so that loading it rounds none of them."""
    floats = sorted({info.dtype for member in members for info in member.infos.values() if info.dtype in FLOATS})
    kept = {key: value for key, value in config.items() if key != "torch_dtype"}
    return {**kept, "dtype": str(DTYPES[widest(floats)]).removeprefix("torch.")} if floats else kept
