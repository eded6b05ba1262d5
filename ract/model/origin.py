"""A checkpoint that becomes the leaf of a tree: which class it takes for the task, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from ract.cost import CheckpointShape
from ract.errors import BadInput
from ract.model.anatomy import anatomy
from ract.model.live import live_config, read_config

_CLASSES: dict[str, Any] = {
    "language-modeling": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "translation": AutoModelForSeq2SeqLM,
}


@dataclass(frozen=True)
class TaskLabels:
    """What a model's config says of its task: class names in order, or the languages of a translator."""

    labels: Sequence[str] = ()
    source_language: str = ""
    target_language: str = ""

    def config_values(self) -> dict[str, object]:
        """The fields for a config."""
        if self.labels:
            return {
                "num_labels": len(self.labels),
                "id2label": dict(enumerate(self.labels)),
                "label2id": {label: i for i, label in enumerate(self.labels)},
                "problem_type": "single_label_classification",
            }
        if self.source_language:
            return {"source_language": self.source_language, "target_language": self.target_language}
        return {}


def task_class(path: Path, task: str) -> type[PreTrainedModel]:
    """The class that the checkpoint at *path* is loaded as for *task*. BadInput where its architecture has none."""
    config = live_config(read_config(path))
    try:
        return _CLASSES[task]._model_mapping[type(config)]
    except KeyError as error:
        raise BadInput(
            f"{path} is of type {config.model_type}, for which transformers has no model for {task}",
            "Give a checkpoint that is made for the task: an encoder for classification, an encoder-decoder for "
            "translation, a decoder for language-modeling",
        ) from error


def task_config(path: Path, task: str, values: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's config as that of its class for *task*, with *values* (class names, languages) in it."""
    config = {**read_config(path), **values, "architectures": [task_class(path, task).__name__]}
    config.pop("num_labels", None)  # id2label says it
    if "id2label" in config:
        config["id2label"] = {str(number): label for number, label in config["id2label"].items()}
    return config


def checkpoint_shape(path: Path, task: str, values: dict[str, Any]) -> CheckpointShape:
    """What the checkpoint costs as a model for *task*, counted from its config alone."""
    found = anatomy(task_config(path, task, values))
    if not found.stacks:
        raise BadInput(f"{path}: no stack of blocks is found in {found.model_class}", "Give another checkpoint")
    parts = found.parts.items()
    sizes = {name: int(torch.Size(part.shape).numel()) for name, part in parts}
    depth = found.stacks[0].depth
    inside = {name: part for name, part in parts if part.block is not None}
    block: dict[tuple[int, int], int] = {}
    for part in inside.values():
        if len(part.shape) == 2:
            shape = (part.shape[0], part.shape[1])
            block[shape] = block.get(shape, 0) + 1
    per_block = tuple((-(-count // depth), *shape) for shape, count in sorted(block.items()))
    outside = {name: size for name, size in sizes.items() if name not in inside}
    tables = sum(size for name, size in outside.items() if found.parts[name].role in ("embedding", "position"))
    head = {"classification": 0}.get(task, max((sizes[name] for name in (*found.head, *found.embeddings)), default=0))
    return CheckpointShape(
        architecture=found.model_type,
        vocab_size=int(found.config.get("vocab_size", 0)),
        hidden_size=next(
            int(found.config[key]) for key in ("hidden_size", "d_model", "n_embd") if found.config.get(key)
        ),
        num_hidden_layers=depth,
        block_parameters=sum(sizes[name] for name in inside) // depth,
        outside_parameters=sum(outside.values()) + sum(sizes[name] for name in inside) % depth,
        tables=tables,
        head=head,
        block=per_block,
        stacks=len(found.stacks),
    )
