"""Open what an aggregation is given: directories, pickled weights by permission, averages that are not written."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ract.aggregate import merge
from ract.aggregate.alpha import given, uniform
from ract.aggregate.collapse import Child, Nested, representative
from ract.aggregate.engine import companion_files
from ract.checkpoint.directory import ModelDirectory, open_model, read_json
from ract.checkpoint.tensors import DTYPES
from ract.checkpoint.tokenizers import tokenizer_difference
from ract.checkpoint.writer import write_tensors
from ract.errors import BadInput

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Average:
    """A linear merge that stands for one model and is never written: a lower level of a tree of merges."""

    models: Sequence[PathLike | Average]
    weights: str | Sequence[float] = "uniform"


def open_inputs(models: Sequence[PathLike | Average], scratch: Path | None) -> tuple[list[Child], dict[Path, Path]]:
    """*models* opened, and for every directory that is read elsewhere than given, ``{where it is read: given}``.

    Pickled weights are converted into *scratch*; without it they are refused. Raises BadInput for what
    :func:`open_model` refuses, and for tokenizers that differ.
    """
    converted: dict[Path, Path] = {}
    children = [_open(model, scratch, converted) for model in models]
    same_tokenizers([leaf for child in children for leaf in _leaves(child)])
    return children, converted


def _open(model: PathLike | Average, scratch: Path | None, converted: dict[Path, Path]) -> Child:
    if isinstance(model, Average):
        if not model.models:
            raise BadInput("an average of no models", "Give at least one model")
        below = [_open(one, scratch, converted) for one in model.models]
        count = len(below)
        alpha = uniform(count) if model.weights == "uniform" else given(model.weights, count)
        return Nested(merge.recipe([representative(child) for child in below], alpha), below)
    path = Path(model)
    if scratch is not None and path.is_dir() and not any(path.glob("*.safetensors")) and any(path.glob("*.bin")):
        target = scratch / str(len(converted))
        convert_pickled(path, target)
        converted[target] = path
        path = target
    return open_model(path)


def _leaves(child: Child) -> list[ModelDirectory]:
    return [child] if isinstance(child, ModelDirectory) else [leaf for one in child.children for leaf in _leaves(one)]


def same_tokenizers(models: Sequence[ModelDirectory]) -> None:
    """BadInput when two models read text differently: their embeddings' rows then stand for different words."""
    for other in models[1:]:
        difference = tokenizer_difference(models[0].path, other.path)
        if difference:
            raise BadInput(
                f"{models[0].path} and {other.path} have different tokenizers: {difference}",
                "Only models with one tokenizer can be aggregated; train or fine-tune them from one base",
            )


def convert_pickled(source: Path, target: Path) -> None:
    """Write the pickled weights (``.bin``) of *source* as safetensors into the new folder *target*.

    They are opened with ``weights_only=True``: a file that holds more than tensors is refused, and nothing in it runs.
    """
    index = source / "pytorch_model.bin.index.json"
    names = read_json(index).get("weight_map", {}).values() if index.is_file() else []
    files = [source / name for name in dict.fromkeys(map(str, names))] or sorted(source.glob("pytorch_model*.bin"))
    if not files:
        raise BadInput(f"{source} holds no pytorch_model.bin", "Name the pickled weights pytorch_model.bin")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= _unpickled(file)
    target.mkdir(parents=True)
    shutil.copyfile(source / "config.json", target / "config.json")
    for path in companion_files(source):
        shutil.copyfile(path, target / path.name)
    write_tensors(target, tensors)


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(
            f"{file} cannot be read as plain tensors: {reason[0][:120]}",
            "It is damaged, or holds code, which is never run; convert it where you trust it",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise BadInput(f"{file} is not a dictionary of tensors", "Save the model's state_dict, or use safetensors")
    odd = next((name for name, value in state.items() if value.dtype not in DTYPES.values()), None)
    if odd is not None:
        raise BadInput(f"tensor {odd} of {file} has the dtype {state[odd].dtype}, which is not supported")
    return {str(name): value for name, value in state.items()}
