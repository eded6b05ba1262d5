"""What a model is made for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from ract.model.live import model_class, read_config


def task_of(source: Mapping[str, Any] | str | os.PathLike[str]) -> str:
    """The task of the model that *source* (a config, its file or directory) describes, by its class.

    "classification" for a …ForSequenceClassification, "translation" for what writes one text from another, else
    "language-modeling". Raises BadInput where no model is described.
    """
    name = model_class(read_config(source)).__name__
    if name.endswith("ForSequenceClassification"):
        return "classification"
    if name.endswith("ForSeq2SeqLM") or name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
        return "translation"
    return "language-modeling"
