"""Learning from the original: a pruned model is healed, or a fresh compact transformer is taught (Hinton et al.,
arXiv:1503.02531), on text of the user's own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ract.checkpoint.lineage import Cost
from ract.checkpoint.live import load_model, quiet
from ract.cost import EncoderDecoderShape, EncoderShape, Shape
from ract.data.corpus import CorpusSpec
from ract.data.examples import Examples, ExampleSpec, prepare_examples
from ract.data.heldout import label_number
from ract.data.rows import labelled
from ract.data.tokenizer import copy_tokenizer
from ract.data.tokens import Corpus, Progress, prepare
from ract.errors import BadInput
from ract.export.source import Source
from ract.model.compact import new_compact_transformer
from ract.model.compact_encoder import new_encoder, new_encoder_decoder
from ract.model.origin import TaskLabels, checkpoint_shape
from ract.plan.defaults import FINAL_DECAY, TOKENS_PER_PARAMETER, default_epochs, values_for, whole_steps
from ract.plan.graph import ModelSettings, TrainSpec
from ract.plan.schema import parse_plan
from ract.plan.shapes import leaf_shape
from ract.train.device import device_name
from ract.train.node import Teachers, TrainingRun
from ract.train.objectives import build_objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TASKS = {"decoder": "language-modeling", "encoder": "classification", "encoder-decoder": "translation"}
_OBJECTIVES = {"decoder": "next-token", "encoder": "classification", "encoder-decoder": "translation"}
_LONGEST = 256  # tokens of a text or of a window
_VALID = 0.05
_POSITIONS = 1024  # of a student whose teacher sets no limit
_DROPOUT = {"decoder": 0.0, "encoder": 0.1, "encoder-decoder": 0.1}
# The share of the loss that is the teacher's, and the temperature: of a pruned model and of a student.
_HEALING, _STUDENT = (0.5, 1.0), (0.9, 2.0)
# What ReAct itself trains is healed at the rate it was trained at; checkpoints from elsewhere are changed gently.
_COMPACT = ("qwen3", "modernbert", "marian")
_HEALING_SHARE = 4  # a pruned model, which knows most already, learns so many times shorter than a student


@dataclass(frozen=True)
class Lesson:
    """What to learn from: text for the model's task, so many *tokens* of it, at the learning rate *lr* (None: defaults
    by the size of model and data).
    """

    files: tuple[str, ...]
    tokens: int | None = None
    lr: float | None = None
    seed: int = 0


class Teacher:
    """The original model with the text that others learn from, tokenized once with its tokenizer below *work*.

    Raises BadInput for text that is not of the model's task, too little of it, or classes the model does not have.
    """

    def __init__(self, source: Source, lesson: Lesson, work: Path, progress: Progress | None = None) -> None:
        self.source, self.lesson, self.progress = source, lesson, progress
        self.longest = min(_LONGEST, source.limit or _LONGEST)
        self.data = self._prepared(work)

    @property
    def key(self) -> list[Any]:
        """All that what is learned follows from, beside the two models."""
        return [self.data.digest, self.lesson.tokens, self.lesson.lr, self.lesson.seed, self.longest]

    def heal(self, pruned: Path, out: Path) -> Cost:
        """Train the model at *pruned* with the original as its teacher, into *out*; what that cost."""
        model = load_model(pruned, dtype=torch.float32)
        return self._train(model, out, "heal", *_HEALING)

    def student(self, shape: Shape | EncoderShape | EncoderDecoderShape, out: Path) -> Cost:
        """Train a fresh compact transformer of *shape* with the original as its teacher, into *out*; what that cost."""
        return self._train(self._fresh(shape), out, "student", *_STUDENT)

    def _fresh(self, shape: Shape | EncoderShape | EncoderDecoderShape) -> PreTrainedModel:
        seed, tokenizer, config = self.lesson.seed, self.source.tokenizer, self.source.model.config
        positions = self.source.limit or _POSITIONS
        if isinstance(shape, Shape):
            assert isinstance(self.data, Corpus)
            return new_compact_transformer(
                shape,
                seed=seed,
                max_position_embeddings=positions,
                eos_token_id=self.data.separator,
                pad_token_id=tokenizer.pad_token_id,
            )
        settings = ModelSettings(positions, _DROPOUT[self.source.kind])
        languages = [str(getattr(config, f"{side}_language", "") or "") for side in ("source", "target")]
        if isinstance(shape, EncoderShape):
            task = TaskLabels(class_names(self.source))
            return new_encoder(shape, tokenizer, seed=seed, settings=settings, task=task)
        task = TaskLabels((), *languages)
        return new_encoder_decoder(shape, tokenizer, seed=seed, settings=settings, task=task)

    def _train(self, model: PreTrainedModel, out: Path, stage: str, share: float, temperature: float) -> Cost:
        dtype = getattr(torch, str(model.config.to_dict().get("dtype") or "float32"), torch.float32)
        spec = replace(self._spec(model, stage), distill=share, temperature=temperature)
        teacher = load_model(self.source.directory, dtype=torch.float32)
        run = TrainingRun(
            model, spec, build_objective(spec, self.data), teachers=Teachers([teacher], [1.0]), report=self.progress
        )
        outcome = run.run()
        with quiet():
            model.to(dtype).save_pretrained(out)
        copy_tokenizer(self.source.directory, out)
        shape = checkpoint_shape(out, TASKS[self.source.kind], {})
        each = shape.train_flops_per_token(spec.block_size, spec.batch_tokens, spec.optimizer)
        each += 2 * teacher.num_parameters()  # its forward pass, by the usual estimate
        flops = each * outcome.tokens
        return Cost(
            tokens=outcome.tokens,
            flops=flops,
            seconds=outcome.progress.seconds,
            device=device_name(),
            total_flops=flops,
        )

    def _spec(self, model: PreTrainedModel, stage: str) -> TrainSpec:
        objective = _OBJECTIVES[self.source.kind]
        tuned = stage == "heal" and self.source.architecture not in _COMPACT
        values = values_for(objective, fine_tuning=tuned, decay=FINAL_DECAY)
        values |= {"block_size": min(values["block_size"], self.longest), "order_seed": self.lesson.seed}
        if self.lesson.lr is not None:
            values["lr"] = self.lesson.lr
        tokens = self.lesson.tokens
        if tokens is None and isinstance(self.data, Examples):
            tokens = round(default_epochs(objective, stage, fine_tuning=tuned) * self.data.tokens_in("train"))
        elif tokens is None:
            shorter = _HEALING_SHARE if stage == "heal" else 1
            tokens = TOKENS_PER_PARAMETER * model.num_parameters() // shorter
        return whole_steps(TrainSpec(**values, tokens=tokens))

    def _prepared(self, work: Path) -> Corpus | Examples:
        source, files = self.source, self.lesson.files
        if source.kind == "decoder":
            return self._corpus(work)
        if source.kind == "encoder":
            files = (str(_numbered(source, files, work)),)
        examples = ExampleSpec(TASKS[source.kind], files, test_fraction=0.0, max_tokens=self.longest)
        found = prepare_examples(examples, work, tokenizer=source.directory, progress=self.progress)
        if found.task == "classification" and len(found.labels) != source.model.config.num_labels:
            names = class_names(source)
            absent = next(name for number, name in enumerate(names) if str(number) not in found.labels)
            raise BadInput(
                f'{", ".join(self.lesson.files)}: no text has the class "{absent}"', "Give texts of every class"
            )
        return found

    def _corpus(self, work: Path) -> Corpus:
        """A part of the text, by hash, decides when to stop; of a text too short for that, none."""

        def corpus(valid_fraction: float) -> Corpus:
            spec = CorpusSpec(self.lesson.files, valid_fraction=valid_fraction, test_fraction=0.0)
            options: dict[str, Any] = {"block_size": self.longest, "progress": self.progress}
            return prepare(spec, work, tokenizer=self.source.directory, **options)

        try:
            return corpus(_VALID)
        except BadInput:
            return corpus(0.0)


def student_shape(
    source: Source, *, parameters: int | None = None, hidden_size: int | None = None, layers: int | None = None
) -> Shape | EncoderShape | EncoderDecoderShape:
    """The shape of a compact student for the task and the vocabulary of *source*, of about so many *parameters*, or of
    the width and depth given. Raises BadInput where these contradict each other or no model is so small.
    """
    given: dict[str, Any] = {"parameters": parameters, "hidden_size": hidden_size, "num_hidden_layers": layers}
    task = TASKS[source.kind]
    data = {"task": task, "train": ["-"]}
    if task == "translation":  # which languages they are makes no difference to the shape
        data |= {"source_language": "en", "target_language": "en"}
    values: dict[str, Any] = {
        "name": "student",
        "data": data,
        "tokenizer": {"vocab_size": source.model.get_input_embeddings().weight.shape[0]},
        "compact": {key: value for key, value in given.items() if value is not None},
    }
    plan = parse_plan(values, "the student")
    try:
        shape = leaf_shape(plan, source.model.config.num_labels if source.kind == "encoder" else 0)
    except BadInput as error:
        raise BadInput(error.problem.replace("[compact]", "the student"), error.remedy) from error
    assert isinstance(shape, (Shape, EncoderShape, EncoderDecoderShape))
    return shape


def class_names(source: Source) -> tuple[str, ...]:
    """The classes of a classifier, in their order."""
    config: Any = source.model.config
    return tuple(str(config.id2label[number]) for number in range(config.num_labels))


def _numbered(source: Source, files: Sequence[str], work: Path) -> Path:
    """The labelled texts of *files* with the model's own number of each class, which decides their order."""
    work.mkdir(parents=True, exist_ok=True)
    out = work / "labelled.jsonl"
    with out.open("w", encoding="utf-8") as file:
        for where, text, label in labelled(files):
            row = {"text": text, "label": label_number(label, source.model.config, where)}
            file.write(json.dumps(row) + "\n")
    return out
