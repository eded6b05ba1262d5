"""Children as live ``transformers`` models: opened strictly, run with other parameters, measured on batches.

Where a decision needs data (learned α, Fisher, alignment by loss, the barrier), children are run rather than streamed.
Their parameters stay memory-mapped in their own dtype, so N children cost one working copy, not N.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call

from ract.checkpoint.live import load_model
from ract.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = Mapping[str, torch.Tensor]
Progress = Callable[[str, int, int], None]
Parameters = dict[str, torch.Tensor]


def load(path: str | os.PathLike[str]) -> PreTrainedModel:
    """The model at *path* in the class its config names, in evaluation mode, parameters memory-mapped in their dtype.

    Raises BadInput when ``transformers`` has no such class, or when a tensor is missing or has another shape: a head
    made up at random would be measured as if it were trained.
    """
    model = load_model(path)
    model.config.use_cache = False  # a cache costs memory and gives nothing when whole sequences are scored
    return model


def parameters(model: PreTrainedModel) -> Parameters:
    """Name → parameter (detached, tied ones once), in the model's order."""
    return {name: p.detach() for name, p in model.named_parameters()}


def same_shapes(children: Sequence[Parameters], paths: Sequence[Any]) -> None:
    """BadInput unless all children have the same parameters in the same shapes."""
    first = children[0]
    for path, child in zip(paths[1:], children[1:], strict=True):
        for name in dict.fromkeys([*first, *child]):
            if name not in first or name not in child:
                owner = paths[0] if name in first else path
                raise BadInput(
                    f"only {owner} has the tensor {name}, so {paths[0]} and {path} cannot be added",
                    "Merge models of one shape, or use --method ensemble",
                )
            if first[name].shape != child[name].shape:
                raise BadInput(
                    f"{name} is {tuple(first[name].shape)} in {paths[0]} and {tuple(child[name].shape)} in {path}",
                    "Merge models of one shape, or use --method ensemble",
                )


def loss_of(model: PreTrainedModel, batch: Batch, replaced: Parameters | None = None) -> torch.Tensor:
    """The mean loss of *batch* (a scalar), with the parameters in *replaced* instead of the model's own.

    Raises BadInput when the model has no loss for the batch (a bare encoder, labels missing).
    """
    try:
        output = functional_call(model, replaced or {}, args=(), kwargs=dict(batch))
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise BadInput(
            f"{type(model).__name__} does not take these batches: {error}",
            "Give data of the task the model was trained for",
        ) from error
    loss = getattr(output, "loss", None)
    if loss is None:
        raise BadInput(f"{type(model).__name__} gives no loss", "Use batches with labels and a model with a head")
    return loss.float()


def label_count(batch: Batch) -> int:
    """How many labels of *batch* count (−100 is ignored): the weight of its mean loss in the mean over batches."""
    labels = batch.get("labels")
    return 1 if labels is None else max(1, int((labels != -100).sum()))


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: Sequence[Batch], replaced: Parameters | None = None) -> float:
    """The mean loss over all labels of *batches*, in nats."""
    counts = [label_count(batch) for batch in batches]
    total = sum(n * float(loss_of(model, batch, replaced)) for n, batch in zip(counts, batches, strict=True))
    return total / sum(counts)


def between(first: Parameters, second: Parameters, t: float) -> Parameters:
    """``(1 − t) · first + t · second`` in fp32: a point of the line between two models."""
    return {name: (1.0 - t) * p.float() + t * second[name].float() for name, p in first.items()}


def probe(model: PreTrainedModel, length: int = 12) -> Parameters:
    """A small input of random tokens, the same for every call: what outputs are compared on."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, model.config.get_text_config().vocab_size, (2, length), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**inputs, "decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else inputs
