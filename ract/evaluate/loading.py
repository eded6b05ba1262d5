"""A causal language model and its tokenizer from a model directory, refused clearly when they are not one."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ract.checkpoint.directory import open_model
from ract.checkpoint.live import load_model
from ract.data.tokenizer import load_tokenizer
from ract.errors import BadInput
from ract.model.live import model_class


def load_causal_lm(
    path: Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model at *path* in evaluation mode, in *dtype* (None: as saved), and its tokenizer.

    Raises BadInput: no model directory, not a causal language model, a tensor absent or of another shape (it would be
    made up at random), no tokenizer.
    """
    directory = open_model(path)
    cls = model_class(directory.config)
    if not (cls.__name__.endswith("ForCausalLM") or cls.__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        raise BadInput(
            f"{path} is a {cls.__name__}, not a causal language model",
            "Give a model that continues text (…ForCausalLM)",
        )
    model = load_model(path, dtype=dtype or "auto")
    return model.to(device), load_tokenizer(path)


def max_positions(model: PreTrainedModel) -> int | None:
    """How many tokens *model* can look at, or None where its config sets no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def check_vocabulary(largest: int, model: PreTrainedModel, path: Path) -> None:
    """Raise BadInput when the tokenizer gave a number for which *model* has no embedding."""
    rows = model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise BadInput(
            f"the tokenizer in {path} gives token {largest}, but the model has only {rows} embeddings",
            "Use the tokenizer that the model was trained with",
        )
