"""The plans that ``ract init`` writes for classification and translation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ract.cost import (
    BYTES_PER_PARAMETER,
    EncoderDecoderShape,
    EncoderShape,
    derive_encoder_decoder_shape,
    derive_encoder_shape,
)
from ract.data.sources import JSONL_SUFFIXES, size_bytes
from ract.errors import BadInput
from ract.plan.quantities import show_count, show_size

_WIDTHS = range(32, 1025, 32)
_VOCABULARIES = (8192, 4096, 2048, 1024, 512)
# Labelled data is small: a row of the vocabulary pays from fewer bytes of text on than in language modelling.
_BYTES_PER_ROW, _SHARE_OF_EMBEDDING = 150, 0.75
_BLOCKS = 3
_WIDEST = 256

_CLASSIFICATION = """\
# A plan for `ract build {file}`. What it costs: `ract check {file}`.
name = "{name}"
seed = 0

[data]
task = "classification"
train = {sources}
text_field = "text"           # the fields or columns of your rows
label_field = "label"
# 5% of the texts, chosen by hash, are kept for choices (valid) and 5% for the final numbers (test); or name files.
# unlabelled = ["more.txt"]   # raw text of the same kind makes pre-training better

[tokenizer]
vocab_size = {vocab}            # byte-level BPE, trained on your text
lowercase = true

[budget]
flops = "{flops}"            # for the whole tree: about {minutes} minutes on this machine with its baseline beside it

[compact]                     # the leaf: a small encoder (ModernBERT architecture)
hidden_size = {hidden}
num_hidden_layers = {blocks}
# pretrain = {{}}               # masked language modelling on your texts first; two million tokens of it did not pay

[[level]]                     # {members} branches, each with its own order of the data, side by side
method = "ensemble"
members = {members}
branch = {{ vary = ["seed"] }}

[[level]]                     # the ensemble teaches one encoder of the leaf's size
method = "distill"
student = {{}}

[baseline]
enabled = true                # one model of the final size with the same FLOPs, to compare with: half of the time
"""

_TRANSLATION = """\
# A plan for `ract build {file}`. What it costs: `ract check {file}`.
name = "{name}"
seed = 0

[data]
task = "translation"
source_language = "{source}"
target_language = "{target}"
train = {sources}
# 5% of the pairs, chosen by hash, are kept for choices (valid) and 5% for the final numbers (test); or name files.

[tokenizer]
vocab_size = {vocab}            # one byte-level BPE for both languages, trained on your text

[budget]
flops = "{flops}"            # for the whole tree: about {minutes} minutes on this machine with its baseline beside it

[compact]                     # the leaf: a small encoder-decoder (Marian architecture)
hidden_size = {hidden}
num_hidden_layers = {blocks}

[[level]]                     # {members} of them, each from a seed of its own, side by side
method = "ensemble"
members = {members}

[baseline]
enabled = true                # one model of the ensemble's size with the same FLOPs: half of the time
"""


@dataclass(frozen=True)
class TaskPlan:
    """A leaf that fits, and the text of its plan (still with gaps for the file, the name and the budget)."""

    leaf: EncoderShape | EncoderDecoderShape
    template: str


def plan_for(
    task: str, sources: Sequence[str], languages: str | None, target_bytes: int, precision: str, members: int
) -> TaskPlan:
    """The plan for *task*, with the widest leaf whose final model (of *members* leaves for translation) fits.

    Raises BadInput without data, without the *languages* of a translation ("en-zh"), for sources that hold no rows, and
    for a target below the smallest model.
    """
    if not sources:
        raise BadInput(f"{task} needs data of your own", "Name it: --data FILE")
    if task == "classification":
        _check_rows(sources)
    elif languages is None or len(languages.split("-")) != 2:
        raise BadInput("translation needs its two languages", "Name them: --languages en-zh")
    together = members if task == "translation" else 1
    leaf = _widest(task, target_bytes / BYTES_PER_PARAMETER[precision] / together, size_bytes(sources))
    if leaf is None:
        smallest = _shape(task, 512, 32).size_bytes(precision) * together
        raise BadInput(
            f"no model fits in {show_size(target_bytes)} at {precision}", f"The smallest takes {show_size(smallest)}"
        )
    if task == "classification":
        return TaskPlan(leaf, _CLASSIFICATION)
    source, target = (languages or "").split("-")
    return TaskPlan(leaf, _TRANSLATION.replace("{source}", source).replace("{target}", target))


def filled(found: TaskPlan, flops: float, members: int, file: Path, name: str, sources: str, minutes: float) -> str:
    """The text of the plan."""
    return found.template.format(
        file=file,
        name=name,
        sources=sources,
        vocab=found.leaf.vocab_size,
        flops=show_count(flops),
        minutes=f"{minutes:g}",
        hidden=found.leaf.hidden_size,
        blocks=found.leaf.num_hidden_layers,
        members=members,
    )


def _widest(task: str, parameters: float, text_bytes: int | None) -> EncoderShape | EncoderDecoderShape | None:
    """The widest shape within *parameters* whose vocabulary suits the text and does not eat the budget."""
    rows = [v for v in _VOCABULARIES if text_bytes is None or v * _BYTES_PER_ROW <= text_bytes] or [_VOCABULARIES[-1]]
    for vocabulary in rows:
        fitting = [s for w in _WIDTHS if (s := _shape(task, vocabulary, w)).parameters <= parameters]
        if fitting:
            best = min(fitting[-1], _shape(task, vocabulary, _WIDEST), key=lambda shape: shape.hidden_size)
            if vocabulary * best.hidden_size <= _SHARE_OF_EMBEDDING * best.parameters:
                return best
    fitting = [s for w in _WIDTHS if (s := _shape(task, _VOCABULARIES[-1], w)).parameters <= parameters]
    return fitting[-1] if fitting else None


def _shape(task: str, vocabulary: int, width: int) -> EncoderShape | EncoderDecoderShape:
    if task == "classification":
        return derive_encoder_shape(vocabulary, width, _BLOCKS, num_labels=2)
    return derive_encoder_decoder_shape(vocabulary, width, _BLOCKS)


def _check_rows(sources: Sequence[str]) -> None:
    for source in sources:
        suffix = Path(source).suffix.lower()
        if not source.startswith("hf:") and suffix not in {*JSONL_SUFFIXES, ".csv", ".tsv", ".parquet"}:
            raise BadInput(f"{source} has no labelled rows", "Give JSONL, CSV, TSV or Parquet with a text and a label")
