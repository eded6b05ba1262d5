"""A model for a task and its tokenizer from a model directory, refused clearly when they are not one."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ract.checkpoint.directory import open_model
from ract.checkpoint.live import load_model
from ract.data.tokenizer import load_tokenizer
from ract.errors import BadInput
from ract.model.live import model_class
from ract.model.task import is_made_for

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
_WANTED = {  # task → what a wrong model is not, and what to give instead
    "language-modeling": ("a causal language model", "Give a model that continues text (…ForCausalLM)"),
    "classification": ("a text classifier", "Give a model that was trained to classify (…ForSequenceClassification)"),
    "translation": (
        "an encoder-decoder that writes text",
        "Give a model that was trained to translate (…ForConditionalGeneration, MarianMTModel)",
    ),
}


def load_causal_lm(path: Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Loaded:
    """The causal language model at *path*: see :func:`load_for`."""
    return load_for("language-modeling", path, dtype=dtype, device=device)


def load_for(task: str, path: Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Loaded:
    """The model at *path* in evaluation mode, in *dtype* (None: as saved), and its tokenizer.

    *task* is "language-modeling", "classification" or "translation". Raises BadInput: no model directory, not a model
    for the task, a tensor absent or of another shape (it would be made up at random), no tokenizer.
    """
    name = model_class(open_model(path).config).__name__
    if not is_made_for(task, name):
        wanted, remedy = _WANTED[task]
        raise BadInput(f"{path} is of class {name}, not {wanted}", remedy)
    model = load_model(path, dtype=dtype or "auto")
    if task == "classification":
        _check_classes(model.config, path)
    return model.to(device), load_tokenizer(path)


def _check_classes(config: PretrainedConfig, path: Path) -> None:
    """Raise BadInput for a head whose outputs are not the classes of a text, one of which is right."""
    kind = getattr(config, "problem_type", None)
    if config.num_labels < 2 or kind in ("regression", "multi_label_classification"):
        what = f"has the problem_type {kind}" if kind else "has one class only"
        raise BadInput(f"{path} {what}", "Give a classifier of two or more classes, one of which is right for a text")


def max_positions(model: PreTrainedModel) -> int | None:
    """How many tokens *model* can look at, or None where its config sets no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def check_vocabulary(largest: int, model: PreTrainedModel, path: str | Path) -> None:
    """Raise BadInput when the tokenizer gave a number for which *model* has no embedding."""
    rows = model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise BadInput(
            f"the tokenizer in {path} gives token {largest}, but the model has only {rows} embeddings",
            "Use the tokenizer that the model was trained with",
        )
