"""``ract init``: a commented plan that fits a size and a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ract.checkpoint.directory import write_text
from ract.cost import BYTES_PER_PARAMETER, Shape, derive_shape
from ract.data.corpus import CorpusSpec
from ract.errors import BadInput, nearest
from ract.plan.quantities import show_count, show_size
from ract.tree.init_tasks import filled, plan_for
from ract.tree.machine import processors, training_speed

_COPIES = 4
_LEAF_BLOCKS = 2
_VOCABULARIES = (16384, 8192, 4096, 2048, 1024, 512)
# A vocabulary pays when its rows are seen often and do not eat the budget: text bytes per row, share of the parameters.
_BYTES_PER_ROW, _SHARE_OF_EMBEDDING = 1000, 0.35
_ASSUMED_FLOPS_PER_SECOND = 5e10

_TEMPLATE = """\
# A plan for `ract build {file}`. What it costs: `ract check {file}`.
name = "{name}"
seed = 0

[data]
# Files, globs, folders, .jsonl, "hf:NAME" or "stdlib" (this Python's own standard library).
train = {sources}
# 5% of the documents, chosen by hash, are kept for choices (valid) and 5% for the final numbers (test).

[tokenizer]
vocab_size = {vocab}            # byte-level BPE, trained on your text

[budget]
flops = "{flops}"            # for the whole tree: about {minutes} minutes on this machine with its baseline beside it

[compact]                     # the leaf: a small decoder (Qwen3 architecture)
hidden_size = {hidden}
num_hidden_layers = {blocks}

[[level]]                     # {members} branches of the leaf, each on its own part of the text, averaged by learned α
method = "merge"
members = {members}
branch = {{ vary = ["data"] }}
weights = "learned"

[[level]]                     # {copies} copies on top of each other: {copies} times deeper, then trained on
method = "stack"
copies = {copies}
heal = {{}}

[baseline]
enabled = true                # one model of the final size with the same FLOPs, to compare with: half of the time
"""


@dataclass(frozen=True)
class Choice:
    """The dials that fit: the final model and how it is grown."""

    leaf: Shape
    copies: int

    @property
    def final(self) -> Shape:
        """The shape of the last level."""
        return self.leaf.stacked(self.copies)


def init(
    directory: str | Path = ".",
    *,
    task: str = "language-modeling",
    languages: str | None = None,
    data: list[str] | None = None,
    target_size: int | None = None,
    precision: str = "fp32",
    minutes: float = 10.0,
    members: int = 2,
    name: str | None = None,
    force: bool = False,
) -> Path:
    """Write ``plan.toml`` for *task* into *directory* and return its path; *languages* of a translation: "en-zh".

    The final model's weights take at most *target_size* bytes at *precision* (default 20 MB).
    The budget is what this machine does in about *minutes*, the baseline counted in.
    Raises BadInput for a target below the smallest model (and says which that is), for data that is not there, and
    for a plan that exists already.
    """
    folder = Path(directory)
    file = folder / "plan.toml"
    if file.exists() and not force:
        raise BadInput(f"{file} exists already", "Give --force to replace it, or another folder")
    known = ("language-modeling", "classification", "translation")
    if task not in known:
        raise BadInput(f'there is no task "{task}"', nearest(task, known))
    sources = data or (["stdlib"] if task == "language-modeling" else [])
    listed = "[" + ", ".join(_quoted(s) for s in sources) + "]"
    target = target_size or 20_000_000
    own = name or _name_for(folder)
    if task != "language-modeling":
        found = plan_for(task, sources, languages, target, precision, members)
        flops = _flops_within(minutes, found.leaf.hidden_size)
        text = filled(found, file=file, name=own, sources=listed, flops=flops, minutes=minutes, members=members)
    else:
        choice = choose(target, precision, CorpusSpec(train=tuple(sources)).size_bytes())
        text = _TEMPLATE.format(
            file=file,
            name=own,
            sources=listed,
            vocab=choice.leaf.vocab_size,
            flops=show_count(_flops_within(minutes, choice.leaf.hidden_size)),
            minutes=f"{minutes:g}",
            hidden=choice.leaf.hidden_size,
            blocks=choice.leaf.num_hidden_layers,
            members=members,
            copies=choice.copies,
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    return file


def _flops_within(minutes: float, width: int) -> float:
    """FLOPs that all processors do in *minutes*, half of them for the baseline, at the speed of about *width*."""
    speed = training_speed(1)
    nearest_width = min(speed, key=lambda w: abs(int(w) - width)) if speed else ""
    each = speed[nearest_width] if speed else _ASSUMED_FLOPS_PER_SECOND
    return each * processors() * minutes * 60 / 2


def choose(target_bytes: int, precision: str, text_bytes: int | None) -> Choice:
    """The largest final model within *target_bytes*, with a vocabulary that suits *text_bytes* of text.

    Raises BadInput naming the smallest size possible when the target is below it.
    """
    budget = target_bytes / BYTES_PER_PARAMETER[precision]
    suitable = [v for v in _VOCABULARIES if text_bytes is None or v * _BYTES_PER_ROW <= text_bytes] or [
        _VOCABULARIES[-1]
    ]
    for vocabulary in suitable:
        fitting = [c for c in _choices(vocabulary) if c.final.parameters <= budget]
        if fitting:
            best = max(fitting, key=lambda c: c.final.parameters)
            if vocabulary * best.leaf.hidden_size <= _SHARE_OF_EMBEDDING * best.final.parameters:
                return best
    smallest = Choice(derive_shape(_VOCABULARIES[-1], 32, _LEAF_BLOCKS), 2)
    tiny = [c for c in [*_choices(_VOCABULARIES[-1]), smallest] if c.final.parameters <= budget]
    if not tiny:
        need = smallest.final.size_bytes(precision)
        raise BadInput(
            f"no model fits in {show_size(target_bytes)} at {precision}",
            f"The smallest takes {show_size(need)} ({smallest.final.parameters:,} parameters); "
            "int8 takes a quarter of fp32 (--precision int8)",
        )
    return max(tiny, key=lambda c: c.final.parameters)


def _choices(vocabulary: int) -> list[Choice]:
    widths = [*range(32, 512, 32), *range(512, 2049, 64)]
    return [
        Choice(derive_shape(vocabulary, width, blocks), _COPIES)
        for width in widths
        for blocks in range(_LEAF_BLOCKS, max(_LEAF_BLOCKS, width // 96) + 1)
    ]


def _name_for(folder: Path) -> str:
    letters = [c if (c.isalnum() and c.isascii()) or c in "._-" else "-" for c in folder.resolve().name]
    return "".join(letters).strip("._-") or "plan"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
