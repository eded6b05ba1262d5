"""Check a parent before and after it is written: config against tensors, then loading, a forward pass, and numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ract.aggregate.recipe import Recipe, TensorRecipe
from ract.checkpoint.directory import ModelDirectory, open_model
from ract.checkpoint.live import quiet
from ract.checkpoint.tensors import DTYPES, FLOATS, TensorInfo, TensorReader
from ract.errors import BadInput, RactError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WINDOW = 4096
_FUNCTION_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Verification:
    """What was seen: the class that loaded the parent, tensors compared, elements compared, the largest error.

    *ran* is whether a forward pass was made: models that read anything but tokens are only loaded.
    *max_error* is in units of the largest error that one rounding to the tensor's dtype can make (so at most 1).
    """

    model_class: str
    ran: bool
    tensors_sampled: int
    elements_sampled: int
    max_error: float


def check_config(model: ModelDirectory) -> None:
    """BadInput, naming the tensor, when the config stands for other tensors or shapes than the files hold."""
    with TensorReader.of(model) as reader:
        _check(model.config, {name: info.shape for name, info in reader.infos.items()}, str(model.path))


def check_recipe(recipe: Recipe) -> None:
    """RactError, before anything is written, when the parent's config does not stand for the parent's tensors."""
    try:
        _check(
            recipe.config, {tensor.name: tensor.shape for tensor in recipe.tensors}, f"the result of {recipe.method}"
        )
    except BadInput as error:
        raise RactError(str(error)) from error


def _check(config: dict[str, Any], shapes: dict[str, tuple[int, ...]], what: str) -> None:
    from ract.model.anatomy import anatomy

    try:
        known = anatomy(config)
        places = known.locate(shapes)
    except BadInput as error:
        raise BadInput(f"{what}: {error.problem}", error.remedy) from error
    for name, found in places.items():
        part = known.parts.get(known.canonical(name) or name)
        if part is not None and tuple(part.shape) != shapes[found]:
            raise BadInput(
                f"{what}: its config contradicts its weights: tensor {found} has the shape {shapes[found]}, "
                f"the config says {tuple(part.shape)}",
                "Copy config.json and the weights again from the same source",
            )


def verify(
    staging: Path, recipe: Recipe, children: Sequence[ModelDirectory], *, samples: int = 16, seed: int = 0
) -> Verification:
    """Load the parent in *staging* as transformers would, run it, and compare samples with the formula in fp64.

    Raises RactError: a tensor is missing, unexpected or misshapen, the output is not finite, or a sampled number is
    further from its formula than one rounding.
    """
    parent = open_model(staging)
    model = load(parent)
    reads_tokens = model.main_input_name == "input_ids"
    if reads_tokens:
        with torch.inference_mode():
            outputs = model(**_inputs(model))
        first = next(value for value in outputs.to_tuple() if isinstance(value, torch.Tensor))
        if not first.isfinite().all():
            raise RactError(f"the result of {recipe.method} gives NaN or infinities in a forward pass")
    tensors, elements, error = compare(parent, recipe, children, samples=samples, seed=seed)
    return Verification(type(model).__name__, reads_tokens, tensors, elements, error)


def load(parent: ModelDirectory) -> PreTrainedModel:
    """*parent* in the class its config names; RactError for missing, unexpected or misshapen tensors."""
    from ract.model.live import model_class

    with quiet():
        model, info = model_class(parent.config).from_pretrained(
            parent.path, dtype="auto", local_files_only=True, output_loading_info=True, use_safetensors=True
        )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        wrong = sorted(map(str, info.get(kind) or ()))
        if wrong:
            raise RactError(f"the result does not load cleanly: {kind.replace('_', ' ')}: {', '.join(wrong[:3])}")
    return model.eval()


def _inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    text = model.config.get_text_config()
    ids = torch.arange(1, 9).remainder(int(text.vocab_size)).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return inputs


def compare(
    parent: ModelDirectory, recipe: Recipe, children: Sequence[ModelDirectory], *, samples: int, seed: int
) -> tuple[int, int, float]:
    """Tensors and elements compared with their formula, and the largest error in units of one rounding's bound."""
    readers = [TensorReader.of(child) for child in children]
    written = TensorReader.of(parent)
    if set(written.infos) != {tensor.name for tensor in recipe.tensors}:
        raise RactError("the files hold other tensors than the recipe")
    candidates = [t for t in recipe.tensors if t.constant is None and _small_enough(t)]
    chosen = random.Random(seed).sample(candidates, min(samples, len(candidates)))
    total, worst = 0, 0.0
    for tensor in chosen:
        info = written.infos[tensor.name]
        start = random.Random(f"{seed}/{tensor.name}").randrange(max(1, info.numel - _WINDOW + 1))
        count = min(_WINDOW, info.numel - start)
        exact, magnitude = _exact(tensor, readers, start, count)
        error = rounding_error(_window(written, info, start, count), exact, magnitude)
        if not error <= 1.0:
            raise RactError(f"tensor {tensor.name} was written {error:.3g} roundings away from its formula")
        total, worst = total + count, max(worst, error)
    for reader in (*readers, written):
        reader.close()
    return len(chosen), total, worst


def _small_enough(tensor: TensorRecipe) -> bool:
    return tensor.is_linear or math.prod(tensor.shape) * len(tensor.terms) <= _FUNCTION_ELEMENTS


def _exact(
    tensor: TensorRecipe, readers: Sequence[TensorReader], start: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Elements *start* to *start + count* of the formula in fp64, and the sum of its terms' magnitudes.

    Integers, which all terms share, come from the first term as they are.
    """
    if tensor.function is not None:
        whole = tensor.function([readers[term.child].read(term.name).float() for term in tensor.terms])
        value = whole.flatten()[start : start + count].to(DTYPES[tensor.dtype]).double()
        return value, value.abs()
    windows = [_window(readers[t.child], readers[t.child].infos[t.name], start, count) for t in tensor.terms]
    if tensor.dtype not in FLOATS:
        return windows[0], windows[0]
    terms = torch.stack([window.double() * t.weight for window, t in zip(windows, tensor.terms, strict=True)])
    return terms.sum(0), terms.abs().sum(0)


def _window(reader: TensorReader, info: TensorInfo, start: int, count: int) -> torch.Tensor:
    size = info.size_bytes // max(1, info.numel)
    data = torch.empty(count * size, dtype=torch.uint8)
    reader.read_into(info.shard, info.begin + start * size, data.numpy().data)
    return data.view(DTYPES[info.dtype])


def rounding_error(written: torch.Tensor, exact: torch.Tensor, magnitude: torch.Tensor) -> float:
    """The largest ``|written − exact|`` over half a unit in the last place; 0 or infinity for what is not a float.

    *magnitude*, the sum of the terms' absolute values, says how exact the fp64 sum itself can be.
    """
    if not written.dtype.is_floating_point or exact.dtype != torch.float64:
        return 0.0 if torch.equal(written, exact) else math.inf
    limits = torch.finfo(written.dtype)
    # 1% of room: PyTorch rounds fp64 to 16 bits by way of fp32.
    bound = exact.abs() * (limits.eps / 2 * 1.01) + limits.tiny * limits.eps + magnitude * 1e-15
    error = (written.double() - exact).abs() / bound
    return float(error.max()) if error.numel() else 0.0
