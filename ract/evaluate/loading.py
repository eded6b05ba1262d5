"""A causal language model and its tokenizer from a model directory, refused clearly when they are not one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from ract.checkpoint.directory import open_model
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
    with _without_progress_bar():
        try:
            model, info = cls.from_pretrained(
                path, dtype=dtype or "auto", local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise BadInput(f"{path} does not open as {cls.__name__}: {reason[0]}", "Copy the model again") from error
    unusable = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if unusable:
        raise BadInput(f"{path} has no usable tensor {unusable[0]}", "Copy the model again from its source")
    return model.to(device).eval(), load_tokenizer(path)


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


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
