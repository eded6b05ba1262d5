"""The model that a node's training starts from: a parent, a checkpoint, or an untrained one of the node's shape."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ract.checkpoint.live import load_for_task
from ract.cost import EncoderDecoderShape, EncoderShape, Shape
from ract.data.tokenizer import load_tokenizer
from ract.data.tokens import Corpus
from ract.errors import RactError
from ract.model.compact import new_compact_transformer
from ract.model.compact_encoder import new_encoder, new_encoder_decoder
from ract.model.origin import TaskLabels
from ract.tree.job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ract.data.examples import Examples


def starting_model(job: Job, data: Corpus | Examples) -> PreTrainedModel:
    """The model, in fp32, that the training of *job* changes."""
    if not job.node.parents:
        return _untrained(job, data)
    parent = Path(job.parents[job.node.parents[0]])
    task = task_of(data)
    if isinstance(job.node.shape, EncoderShape) and job.node.shape.num_labels and _is_masked(job):
        return load_for_task(parent, task, task_labels(job, data).config_values(), seed=job.node.seed)
    from ract.aggregate.loaded import load

    return load(parent).float()


def base_model(job: Job, data: Corpus | Examples) -> PreTrainedModel:
    """The checkpoint of a base node as the model for the task, a head drawn for it where it has none."""
    model = load_for_task(job.origin, task_of(data), task_labels(job, data).config_values(), seed=job.node.seed)
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "dropout_rate", "attention_dropout"):
        if job.settings.dropout is not None and hasattr(model.config, key):
            setattr(model.config, key, job.settings.dropout)
    return model


def task_of(data: Corpus | Examples) -> str:
    """The plan's task, from the prepared data."""
    return "language-modeling" if isinstance(data, Corpus) else data.task


def task_labels(job: Job, data: Corpus | Examples) -> TaskLabels:
    """What the config of the models says of the task."""
    labels = () if isinstance(data, Corpus) else data.labels
    return TaskLabels(labels, job.source_language, job.target_language)


def _is_masked(job: Job) -> bool:
    """Whether the parent is a masked-language-model pre-training."""
    from ract.checkpoint.lineage import read_lineage

    lineage = read_lineage(Path(job.parents[job.node.parents[0]]))
    return lineage is not None and lineage.method == "pretrain"


def _untrained(job: Job, data: Corpus | Examples) -> PreTrainedModel:
    node, settings = job.node, job.settings
    tokenizer = load_tokenizer(data.tokenizer_dir)
    task = task_labels(job, data)
    if isinstance(node.shape, EncoderShape):
        return new_encoder(node.shape, tokenizer, seed=node.seed, settings=settings, task=task)
    if isinstance(node.shape, EncoderDecoderShape):
        return new_encoder_decoder(node.shape, tokenizer, seed=node.seed, settings=settings, task=task)
    if not isinstance(node.shape, Shape) or not isinstance(data, Corpus):
        raise RactError(f"{node.name} has a shape that nothing untrained can have: {node.shape.kind}")
    return new_compact_transformer(
        node.shape,
        seed=node.seed,
        max_position_embeddings=settings.max_position_embeddings,
        eos_token_id=data.separator,
        pad_token_id=tokenizer.pad_token_id,
    )
