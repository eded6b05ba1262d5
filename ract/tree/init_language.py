"""The plans that ``ract init`` writes for language modelling: which recipe, which size, by what is scarce.

What is scarce follows from the budget and the text (``docs/recipes.md`` has the measurements):

- **compute**: a model of the wanted size would read the text a few times at most. Grow: a small leaf is trained,
  stacked and healed.
- **text**: the budget is enough to read it many times over. Distil: leaves from several seeds, each trained to its
  best, averaged, and taught to one.
- in between, one model, kept from learning the text by heart: what is grown learns it by heart sooner, and leaves are
  not trained to their best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ract.cost import BYTES_PER_PARAMETER, Shape, derive_shape
from ract.errors import BadInput
from ract.plan.quantities import show_count, show_size

RECIPES = ("grow", "single", "distil")
_COPIES = 4
_LEAF_BLOCKS = 2
_NARROW = 192  # below this width four blocks are enough: eight of the same cost lose by 3% (grown) to 7% (single)
_VOCABULARIES = (16384, 8192, 4096, 2048, 1024, 512)
# A vocabulary pays when its rows are seen often and do not eat the budget: text bytes per row, share of the parameters.
_BYTES_PER_ROW, _SHARE_OF_EMBEDDING = 1000, 0.35
# Bytes of text in a token of a vocabulary of 2^b rows, by b: about what English and Chinese text have.
_BYTES_PER_TOKEN_AND_BIT = 0.26
_BLOCK_SIZE, _BATCH_TOKENS = 256, 4096
# At 10 TFLOP the best size read 9 tokens for each of its parameters; half of that cost 1% of the loss, a tenth 10%.
_TOKENS_PER_PARAMETER = 4.0
# From so many passes of a model of the final size on, leaves have the time to be trained to their best, each: with 72
# distilling won on six of the seven texts that were tried and drew on one, with 36 it had lost to one model. Growth was
# level with one model with 9, and lost with 18. With 9 already, regularisation was worth 4%.
_EPOCHS_OF_SCARCE_TEXT = 70.0
_EPOCHS_TOO_MANY_TO_GROW = 14.0
_EPOCHS_OF_REPEATED_TEXT = 8.0

_HEAD = """\
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
flops = "{flops}"            # {spent}: about {minutes} minutes on this machine{beside}

"""
_REGULAR = """\
[train]                       # little text: what keeps a model from learning it by heart allows higher rates
lr = 2.5e-2
weight_decay = 2.0
dropout = 0.1
ema = 0.98                    # the weights are an average over the last fifty steps or so

"""
_COMPACT = """\
[compact]                     # {role}: a small decoder (Qwen3 architecture)
hidden_size = {hidden}
num_hidden_layers = {blocks}
"""
_GROW = """
[[level]]                     # {copies} copies on top of each other: {copies} times deeper, then trained on
method = "stack"
copies = {copies}
heal = {{}}
"""
_DISTIL = """
[[level]]                     # {members} leaves, each from a seed of its own, side by side
method = "ensemble"
members = {members}

[[level]]                     # the ensemble teaches one model of the leaf's size
method = "distill"
student = {{ weight_decay = 0.5 }}   # it has what the leaves say to hold on to
"""
_TAIL = """
[baseline]
enabled = true                # one model of the final size with the same FLOPs, to compare with: half of the time
"""
_WHY = {
    "grow": "Scarce is compute: one model of this size would read your text {epochs} in this time. So it is grown.",
    "single": "One model of this size can read your text {epochs} in this time: too often to grow one,\n"
    "# too seldom for several to teach one.",
    "distil": "Scarce is text: one model of this size could read it {epochs} in this time. So several teach one.",
}
_LEVELS = {"grow": _GROW + _TAIL, "single": "", "distil": _DISTIL + _TAIL}
_LIMITED = (
    "\n# The size asked for would take a larger model, but in {minutes} minutes it would learn less than this one."
)


@dataclass(frozen=True)
class Choice:
    """The dials that fit: the recipe, the leaf, how many copies it is grown by; the reasons, for the reader.

    *epochs* are the passes that one model of the final size makes over the text with *flops*, None where the text's
    size is not known. *limited* says that the final model is smaller than the target, because the budget is. *flops*
    are for the tree: a single model, which needs no baseline, has those of the baseline too.
    """

    recipe: str
    leaf: Shape
    copies: int
    epochs: float | None
    limited: bool
    flops: float

    @property
    def regular(self) -> bool:
        """Whether the text is read so often that a model would learn it by heart."""
        return self.recipe == "distil" or (self.epochs or 0.0) >= _EPOCHS_OF_REPEATED_TEXT

    @property
    def final(self) -> Shape:
        """The shape of the last level."""
        return self.leaf.stacked(self.copies) if self.copies > 1 else self.leaf


def choose(
    target_bytes: int, precision: str, text_bytes: int | None, flops: float, recipe: str | None = None
) -> Choice:
    """The largest final model within *target_bytes* that *flops* can train, and the *recipe* (given or by regime).

    Its vocabulary suits *text_bytes* of text. Raises BadInput naming the smallest size possible when the target is
    below it.
    """
    limit = target_bytes / BYTES_PER_PARAMETER[precision]
    largest = _largest(limit, math.inf, text_bytes)
    if largest is None:
        need = _shapes(_VOCABULARIES[-1])[0].size_bytes(precision)
        raise BadInput(
            f"no model fits in {show_size(target_bytes)} at {precision}",
            f"The smallest takes {show_size(need)} ({_shapes(_VOCABULARIES[-1])[0].parameters:,} parameters); "
            "int8 takes a quarter of fp32 (--precision int8)",
        )
    final = _largest(limit, flops, text_bytes) or _shapes(largest.vocab_size)[0]
    epochs = None if text_bytes is None else _tokens(final, flops) / _text_tokens(text_bytes, final.vocab_size)
    recipe = recipe or _recipe_for(epochs)
    if recipe == "single":
        flops, epochs = 2 * flops, epochs and 2 * epochs
    copies = final.num_hidden_layers // _LEAF_BLOCKS if final.num_hidden_layers < 2 * _COPIES else _COPIES
    copies = copies if recipe == "grow" else 1
    leaf = derive_shape(final.vocab_size, final.hidden_size, final.num_hidden_layers // copies)
    return Choice(recipe, leaf, copies, epochs, final.parameters < largest.parameters, flops)


def _recipe_for(epochs: float | None) -> str:
    if epochs is None or epochs < _EPOCHS_TOO_MANY_TO_GROW:
        return "grow"
    return "distil" if epochs >= _EPOCHS_OF_SCARCE_TEXT else "single"


def filled(choice: Choice, members: int, file: Path, name: str, sources: str, minutes: float) -> str:
    """The text of the plan."""
    alone = choice.recipe == "single"
    passes = "an unknown number of times" if choice.epochs is None else f"{choice.epochs:.2g} times"
    template = _HEAD + "# {why}\n" + _REGULAR * choice.regular + _COMPACT + _LEVELS[choice.recipe]
    return template.format(
        file=file,
        name=name,
        sources=sources,
        vocab=choice.leaf.vocab_size,
        flops=show_count(choice.flops),
        spent="for this one model" if alone else "for the whole tree",
        beside="" if alone else " with its baseline beside it",
        role="the model" if alone else "the leaf",
        minutes=f"{minutes:g}",
        hidden=choice.leaf.hidden_size,
        blocks=choice.leaf.num_hidden_layers,
        copies=choice.copies,
        members=members,
        why=_WHY[choice.recipe].format(epochs=passes) + (_LIMITED.format(minutes=f"{minutes:g}") * choice.limited),
    )


def _largest(parameters: float, flops: float, text_bytes: int | None) -> Shape | None:
    """The largest final shape within *parameters* that *flops* train long enough, with a vocabulary for the text."""
    suitable = [v for v in _VOCABULARIES if text_bytes is None or v * _BYTES_PER_ROW <= text_bytes]
    for vocabulary in suitable or _VOCABULARIES[-1:]:
        fitting = [shape for shape in _shapes(vocabulary) if _fits(shape, parameters, flops)]
        if fitting:
            best = max(fitting, key=lambda shape: shape.parameters)
            if vocabulary * best.hidden_size <= _SHARE_OF_EMBEDDING * best.parameters:
                return best
    fitting = [shape for shape in _shapes(_VOCABULARIES[-1]) if _fits(shape, parameters, flops)]
    return max(fitting, key=lambda shape: shape.parameters, default=None)


def _fits(shape: Shape, parameters: float, flops: float) -> bool:
    enough = math.isinf(flops) or _tokens(shape, flops) >= _TOKENS_PER_PARAMETER * shape.parameters
    return shape.parameters <= parameters and enough


def _tokens(shape: Shape, flops: float) -> float:
    return flops / shape.train_flops_per_token(_BLOCK_SIZE, _BATCH_TOKENS, "muon")


def _text_tokens(text_bytes: int, vocabulary: int) -> float:
    return max(1.0, text_bytes / (_BYTES_PER_TOKEN_AND_BIT * math.log2(vocabulary)))


def _shapes(vocabulary: int) -> Sequence[Shape]:
    """Final shapes, the smallest first: leaves twice as deep where they are narrow, else four times."""
    narrow = [derive_shape(vocabulary, width, 2 * _LEAF_BLOCKS) for width in range(32, _NARROW, 32)]
    wide = [
        derive_shape(vocabulary, width, _COPIES * blocks)
        for width in [*range(_NARROW, 512, 32), *range(512, 2049, 64)]
        for blocks in range(_LEAF_BLOCKS, max(_LEAF_BLOCKS, width // 96) + 1)
    ]
    return [*narrow, *wide]
