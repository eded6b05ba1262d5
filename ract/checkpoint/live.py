"""Open a model directory as a live ``transformers`` model, strictly and quietly."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ract.checkpoint.directory import open_model
from ract.errors import BadInput
from ract.model.live import model_class

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_model(path: str | os.PathLike[str], *, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The model at *path* in the class its config names, in evaluation mode; *dtype* ``"auto"`` is as it was saved.

    Raises BadInput when ``transformers`` has no such class, when the weights are truncated or damaged, or when a tensor
    is missing or has another shape: a head made up at random would be taken for a trained one.
    """
    directory = open_model(path)
    cls: Any = model_class(directory.config)
    with quiet():
        try:
            model, info = cls.from_pretrained(
                directory.path, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        except SafetensorError as error:
            raise BadInput(
                f"the weights of {directory.path} are truncated or damaged ({error})", "Copy them again"
            ) from error
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"{directory.path} does not open as {cls.__name__}: {reason}", "Copy it again") from error
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise BadInput(
            f"{directory.path} has no usable tensor {wrong[0]}, which {cls.__name__} needs",
            "Name the class the weights were saved from in config.json under architectures",
        )
    return model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and remarks: what is wrong is raised, progress is the caller's to draw."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
