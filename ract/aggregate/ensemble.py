"""Ensemble: children side by side in one model, ``logits = Σ αᵢ logitsᵢ``.

Branch-Train-Merge (Li et al. 2022, arXiv:2208.03306). Every tensor of a child is a term of weight 1 under
``members.<i>.``; α stands in the config. A child that is an ensemble itself gives its members, with α multiplied out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.models.auto import modeling_auto

from ract.aggregate.match import Weights
from ract.aggregate.members import Member, copied, open_members, plain_weights, with_dtype
from ract.aggregate.recipe import Recipe, TensorRecipe
from ract.checkpoint.directory import ModelDirectory
from ract.errors import BadInput
from ract.model.anatomy import Anatomy, anatomy
from ract.model.ensemble_config import MODES, EnsembleConfig
from ract.model.live import ENSEMBLE

# Class of the ensemble → the classes whose outputs it can add.
_TASKS: dict[str, Sequence[str]] = {
    "EnsembleForCausalLM": tuple(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()),
    "EnsembleForSeq2SeqLM": tuple(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()),
    "EnsembleForMaskedLM": tuple(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()),
    "EnsembleForSequenceClassification": tuple(modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()),
}


@dataclass(frozen=True)
class _Voice:
    """A member of the parent: *prefix* is what precedes its names inside child *child*."""

    child: int
    prefix: str
    config: dict[str, Any]
    weight: float


def recipe(children: Sequence[ModelDirectory], weights: Weights, *, mode: str = "logits") -> Recipe:
    """The ensemble of *children*, adding ``logits`` or mixing ``probabilities``.

    Raises BadInput: children of different tasks, vocabularies or labels, a model without a head, weights by
    group, negative weights of probabilities, or a nested ensemble of the other mode.
    """
    if mode not in MODES:
        raise BadInput(f'"{mode}" is no mode of an ensemble', f"Known: {', '.join(MODES)}")
    members = open_members(children)
    alpha = plain_weights(weights, members, "an ensemble")
    task = _task(members)
    _same_outputs(members, task)
    voices = [voice for child, member in enumerate(members) for voice in _voices(child, member, alpha[child], mode)]
    known = EnsembleConfig(members=[v.config for v in voices], weights=[v.weight for v in voices], mode=mode)
    config = with_dtype({**known.to_dict(), "architectures": [task]}, members)
    parent = anatomy(config)
    tensors = [one for place, voice in enumerate(voices) for one in _tensors(place, voice, members, parent)]
    lacking = parent.parts.keys() - {one.name for one in tensors}
    if lacking:
        raise BadInput(
            f"{parent.model_class} would lack the tensor {min(lacking)}", "Report this: it is not your mistake"
        )
    return Recipe("ensemble", config, tuple(tensors), alpha, {"mode": mode, "members": len(voices)})


def _task(members: Sequence[Member]) -> str:
    """The one class of ensemble that all members fit in."""
    tasks = [_task_of(member) for member in members]
    for member, task in zip(members, tasks, strict=True):
        if task != tasks[0]:
            raise BadInput(
                f"{members[0].directory.path} fits in an {tasks[0]} and {member.directory.path} in an {task}",
                "Give models of one task",
            )
    return tasks[0]


def _task_of(member: Member) -> str:
    name = member.anatomy.model_class
    found = [task for task, classes in _TASKS.items() if name in classes or name == task]
    if not found:
        raise BadInput(
            f"{member.directory.path} has no logits that an ensemble could add: it is a bare {name}",
            "Give models for causal, masked or sequence-to-sequence language modelling, or for sequence classification",
        )
    return found[0]


def _same_outputs(members: Sequence[Member], task: str) -> None:
    """BadInput unless output *k* means the same for every member."""
    fields = ("id2label",) if task == "EnsembleForSequenceClassification" else ("vocab_size",)
    first = members[0]
    for other in members[1:]:
        for key in fields:
            a, b = first.anatomy.config.get(key), other.anatomy.config.get(key)
            if a != b:
                where = f"{a!r:.60} in {first.directory.path} and {b!r:.60} in {other.directory.path}"
                raise BadInput(f"config.json says {key} = {where}", "Outputs that differ in meaning cannot be added")


def _voices(child: int, member: Member, weight: float, mode: str) -> list[_Voice]:
    config = member.anatomy.config
    if member.anatomy.model_type != ENSEMBLE:
        return [_Voice(child, "", _own_config(member.directory), weight)]
    if config["mode"] != mode and len(config["members"]) > 1:
        raise BadInput(
            f"{member.directory.path} adds {config['mode']}, so its members cannot join an ensemble that adds {mode}",
            f'Use mode "{config["mode"]}"',
        )
    inner = zip(config["members"], config["weights"], strict=True)
    return [_Voice(child, f"members.{i}.", own, weight * alpha) for i, (own, alpha) in enumerate(inner)]


def _own_config(directory: ModelDirectory) -> dict[str, Any]:
    """The child's config as it stands on disk, naming its class."""
    return {**directory.config, "architectures": [anatomy(directory.config).model_class]}


def _tensors(place: int, voice: _Voice, members: Sequence[Member], parent: Anatomy) -> list[TensorRecipe]:
    """The tensors of one member, under their new names; aliases of tied tensors that lie in the files included."""
    member, found = members[voice.child], []
    for name in member.names:
        if name.startswith(voice.prefix):
            new = f"members.{place}.{name.removeprefix(voice.prefix)}"
            if new not in parent.parts and new not in parent.aliases:
                raise BadInput(f"{parent.model_class} has no place for {name} of {member.directory.path}")
            found.append(copied(new, voice.child, member.info(name)))
    return found
