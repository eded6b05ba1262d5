"""What a plan's data becomes, for every task: prepared once below the run's folder, then opened by path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ract.data.corpus import CorpusSpec
from ract.data.tokens import Corpus, Progress, open_corpus, prepare
from ract.errors import BadInput
from ract.plan.defaults import TRAIN_DEFAULTS
from ract.plan.graph import DataSize, Origin
from ract.plan.schema import Plan

if TYPE_CHECKING:
    from ract.data.examples import Examples, ExampleSpec


@dataclass(frozen=True)
class Prepared:
    """The data of a plan: where it lies, what names it, how much it is, and the checkpoint the leaf comes from."""

    data: Corpus | Examples
    size: DataSize
    origin: Origin | None = None


def open_data(folder: Path) -> Corpus | Examples:
    """The prepared corpus or examples in *folder*."""
    if (folder / "corpus.json").is_file():
        return open_corpus(folder)
    from ract.data.examples import open_examples

    return open_examples(folder)


def prepare_data(plan: Plan, run: Path, progress: Progress | None = None) -> Prepared:
    """The plan's data, tokenized below ``run/data``, with the checkpoint's tokenizer where the plan names one.

    Raises BadInput for data or a checkpoint that cannot be used.
    """
    tokenizer = _checkpoint(plan)
    if plan.data.task == "language-modeling":
        corpus = prepare(
            corpus_spec(plan),
            run / "data",
            vocab_size=plan.tokenizer.vocab_size,
            tokenizer=tokenizer,
            block_size=plan.train.block_size or TRAIN_DEFAULTS["block_size"],
            progress=progress,
        )
        return Prepared(corpus, DataSize(len(corpus.tokens["train"])), origin_of(plan))
    from ract.data.examples import prepare_examples

    examples = prepare_examples(
        example_spec(plan),
        run / "data",
        vocab_size=plan.tokenizer.vocab_size,
        tokenizer=tokenizer,
        progress=progress,
    )
    size = DataSize(
        tokens=examples.tokens_in("train"),
        domains={name: examples.tokens_in("train", name) for name in examples.domains},
        text_tokens=len(examples.stream["train"]),
        labels=len(examples.labels),
    )
    return Prepared(examples, size, origin_of(plan, examples.labels))


def remarks(prepared: Prepared) -> list[str]:
    """What a user should know of their examples: how many were cut, left out, or stand in two splits."""
    return [] if isinstance(prepared.data, Corpus) else remarks_on(prepared.data)


def remarks_on(data: Examples) -> list[str]:
    """See :func:`remarks`."""
    found = []
    for split in ("train", "valid", "test"):
        count = data.count(split)
        if data.truncated[split]:
            found.append(
                f"{data.truncated[split]} of {count} {split} examples are longer than {data.max_tokens} tokens: "
                "their ends are cut (max_tokens)"
            )
        if data.skipped[split]:
            found.append(f"{data.skipped[split]} {split} examples are blank on one side: they are left out")
        if data.overlap[split]:
            found.append(f"{data.overlap[split]} of {count} {split} texts also stand in train: their figures flatter")
    return found


def corpus_spec(plan: Plan) -> CorpusSpec:
    """The text of a plan for language modelling."""
    data = plan.data
    return CorpusSpec(
        train=tuple(data.train),
        valid=tuple(data.valid),
        test=tuple(data.test),
        valid_fraction=data.valid_fraction,
        test_fraction=data.test_fraction,
        document=data.document,
        field=data.text_field,
    )


def example_spec(plan: Plan) -> ExampleSpec:
    """The examples of a plan for classification or translation."""
    from ract.data.examples import ExampleSpec

    data = plan.data
    return ExampleSpec(
        task=data.task,
        train=tuple(data.train),
        valid=tuple(data.valid),
        test=tuple(data.test),
        domains={
            name: {"train": tuple(d.train), "valid": tuple(d.valid), "test": tuple(d.test)}
            for name, d in data.domains.items()
        },
        text_field=data.text_field,
        label_field=data.label_field,
        label_names=data.label_names,
        source_field=data.source_field,
        target_field=data.target_field,
        valid_fraction=data.valid_fraction,
        test_fraction=data.test_fraction,
        max_tokens=data.max_tokens,
        unlabelled=tuple(data.unlabelled),
        lowercase=plan.tokenizer.lowercase,
        prefix=data.prefix,
    )


def with_vocabulary(plan: Plan, vocab_size: int) -> Plan:
    """The plan with the vocabulary that the text filled: a small text has fewer pieces than were asked for."""
    return plan.model_copy(update={"tokenizer": plan.tokenizer.model_copy(update={"vocab_size": vocab_size})})


def _checkpoint(plan: Plan) -> Path | None:
    if plan.compact.from_ is None:
        return None
    path = Path(plan.compact.from_).expanduser()
    if not path.is_dir():
        raise BadInput(f'compact.from: "{path}" is not a directory', "Give the directory of a Hugging Face checkpoint")
    return path


def origin_of(plan: Plan, labels: Sequence[str] = ()) -> Origin | None:
    """The checkpoint that *plan* takes its leaf from, as a model for *labels*; None where it names none."""
    path = _checkpoint(plan)
    if path is None:
        return None
    from ract.checkpoint.directory import open_model
    from ract.checkpoint.lineage import content_hash
    from ract.model.origin import TaskLabels, checkpoint_shape

    open_model(path)
    values = TaskLabels(labels, plan.data.source_language, plan.data.target_language).config_values()
    return Origin(str(path.resolve()), content_hash(path), checkpoint_shape(path, plan.data.task, values))
