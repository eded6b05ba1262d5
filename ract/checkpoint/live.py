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
from ract.model.anatomy import anatomy
from ract.model.live import live_config, model_class
from ract.model.origin import task_class, task_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_BODY = ("embedding", "position", "norm")


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


def load_for_task(path: str | os.PathLike[str], task: str, values: dict[str, Any], *, seed: int) -> PreTrainedModel:
    """The checkpoint at *path* in fp32 as the class that does *task*, with *values* (class names, …) in its config.

    A head that it lacks, or has for another number of classes, is drawn from *seed*. Raises BadInput as
    :func:`load_model` does when anything else is missing.
    """
    import torch

    directory = open_model(path)
    cls: Any = task_class(directory.path, task)
    config = task_config(directory.path, task, values)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, info = cls.from_pretrained(
                directory.path,
                config=live_config(config),
                dtype=torch.float32,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"{directory.path} does not open as {cls.__name__}: {reason}", "Copy it again") from error
    parts = anatomy(config).parts
    absent = [*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])]
    wrong = sorted(
        name for name in absent if name in parts and (parts[name].block is not None or parts[name].role in _BODY)
    )
    if wrong:
        raise BadInput(f"{directory.path} has no usable tensor {wrong[0]}", "Give a complete checkpoint")
    return model


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
