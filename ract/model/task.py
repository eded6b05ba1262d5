"""What a model is made for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from ract.model.live import model_class, read_config

# Task → how a class for it ends, what else it may be called.
_CLASSES: dict[str, tuple[str, frozenset[str]]] = {
    "language-modeling": ("ForCausalLM", frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())),
    "classification": ("ForSequenceClassification", frozenset()),
    "translation": ("ForSeq2SeqLM", frozenset(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values())),
}


def is_made_for(task: str, class_name: str) -> bool:
    """Whether a model of that class does *task*: "language-modeling", "classification" or "translation"."""
    ending, others = _CLASSES[task]
    return class_name.endswith(ending) or class_name in others


def task_of(source: Mapping[str, Any] | str | os.PathLike[str]) -> str:
    """The task of the model that *source* (a config, its file or directory) describes, by its class.

    "classification" for a …ForSequenceClassification, "translation" for what writes one text from another, else
    "language-modeling". Raises BadInput where no model is described.
    """
    name = model_class(read_config(source)).__name__
    return next((task for task in ("classification", "translation") if is_made_for(task, name)), "language-modeling")
