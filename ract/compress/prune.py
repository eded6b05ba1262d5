"""Structured pruning: a model directory goes in, a standard checkpoint of a smaller shape comes out.

What stays is chosen on calibration data (:mod:`ract.compress.blocks`, :mod:`ract.compress.units`), written by the
engine of :mod:`ract.aggregate`, opened again, and compared with the original in which what was pruned is silenced: the
two are one function, or the pruning is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ract.aggregate import verify
from ract.aggregate.engine import execute
from ract.aggregate.loaded import Batch
from ract.aggregate.recipe import Recipe
from ract.checkpoint.directory import ModelDirectory, open_model
from ract.checkpoint.live import load_model
from ract.compress import units
from ract.compress.blocks import choose_blocks, live_blocks, without_blocks
from ract.compress.silence import module_of, silenced, skipped
from ract.errors import BadInput
from ract.model.anatomy import Anatomy, anatomy
from ract.model.live import ENSEMBLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[str, int, int], None]
# What is written, what the record says of it, and the original without it.
_Chosen = tuple[Recipe, Any, AbstractContextManager[None]]
_Choose = Callable[..., _Chosen]
_TOLERANCE = 1e-3  # of the largest logit, fp32 against fp32


@dataclass(frozen=True)
class Cut:
    """How much is pruned: so many *blocks* of the whole model, and a share of every block's *neurons* and *heads*."""

    blocks: int = 0
    neurons: float = 0.0
    heads: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.blocks or self.neurons or self.heads)

    def __str__(self) -> str:
        return ", ".join(
            text
            for text, given in (
                (f"{self.blocks} block{'s' * (self.blocks > 1)} less", self.blocks),
                (f"{self.heads:.0%} heads less", self.heads),
                (f"{self.neurons:.0%} neurons less", self.neurons),
            )
            if given
        )


def prune(
    directory: Path, cut: Cut, batches: Sequence[Batch], work: Path, progress: Progress | None = None
) -> tuple[Path, dict[str, Any]]:
    """The model at *directory* without what *cut* says, in a folder below *work*, and what was left out.

    *batches* for ``model(**batch).loss`` are what is chosen on. Raises BadInput where the architecture does not allow
    it, with the reason.
    """
    _refuse_ensembles(directory, cut)
    notes: dict[str, Any] = {}
    steps: list[tuple[str, float, _Choose]] = [
        ("blocks", cut.blocks, _blocks),
        ("heads", cut.heads, _heads),
        ("neurons", cut.neurons, _neurons),
    ]
    for name, much, choose in steps:
        if much:
            opened = open_model(directory)
            model = load_model(directory, dtype=torch.float32)
            model.config.use_cache = False  # whole texts are scored
            recipe, notes[name], silent = choose(model, opened, much, batches, progress)
            directory = work / f"{directory.name}-{name}"
            directory.mkdir(parents=True)
            execute(recipe, [opened], directory)
            verify.verify(directory, recipe, [opened])
            _same_function(model, silent, directory, batches[0])
    return directory, notes


def expected_parameters(directory: Path, cut: Cut) -> int:
    """About how many parameters the model at *directory* has after *cut*. Raises BadInput as :func:`prune` does where
    that is seen without the weights."""
    _refuse_ensembles(directory, cut)
    known = anatomy(open_model(directory).config)
    inside = sum(_count(known, name) for name, part in known.parts.items() if part.block is not None)
    gone = 0.0
    if cut.heads:
        kept = {u: units.kept_heads(u.count, cut.heads) for u in units.heads(known)}
        gone += sum(units.parameters_of(u) * (1 - stay / u.count) for u, stay in kept.items())
    if cut.neurons:
        kept = {u: units.kept_neurons(u.count, cut.neurons) for u in units.neurons(known)}
        gone += sum(units.parameters_of(u) * (1 - stay / u.count) for u, stay in kept.items())
    depth = sum(stack.depth for stack in known.stacks)
    return round(units.parameters(known) - inside + (inside - gone) * (1 - cut.blocks / max(1, depth)))


def depth(directory: Path) -> int:
    """How many blocks the model at *directory* has, those of all stacks together."""
    return sum(stack.depth for stack in anatomy(open_model(directory).config).stacks)


def _refuse_ensembles(directory: Path, cut: Cut) -> None:
    if cut and open_model(directory).config.get("model_type") == ENSEMBLE:
        raise BadInput(f"{directory} is an ensemble, and one model is pruned", "Distil it, or prune its members")


def _blocks(
    model: PreTrainedModel, directory: ModelDirectory, count: float, batches: Sequence[Batch], progress: Progress | None
) -> _Chosen:
    gone = choose_blocks(model, directory, int(count), batches, progress)
    noted = [f"{stack}.{number}" for stack, number in gone]
    return without_blocks(directory, gone), noted, skipped(live_blocks(model, directory, gone))


def _heads(
    model: PreTrainedModel, directory: ModelDirectory, share: float, batches: Sequence[Batch], progress: Progress | None
) -> _Chosen:
    return _units(model, directory, units.choose_heads(model, directory, share, batches))


def _neurons(
    model: PreTrainedModel, directory: ModelDirectory, share: float, batches: Sequence[Batch], progress: Progress | None
) -> _Chosen:
    return _units(model, directory, units.choose_neurons(model, directory, share, batches))


def _units(model: PreTrainedModel, directory: ModelDirectory, choice: units.Choice) -> _Chosen:
    heard = {module_of(model, one.out.weight): units.positions(kept, one.size) for one, kept in choice.kept.items()}
    return units.cut(directory, choice), dict(choice.fields), silenced(heard)


@torch.no_grad()
def _same_function(model: PreTrainedModel, silent: AbstractContextManager[None], pruned: Path, batch: Batch) -> None:
    """Raise BadInput unless the model at *pruned* gives the logits of *model* while it is *silent*."""
    with silent:
        expected = model(**batch).logits
    found = load_model(pruned, dtype=torch.float32)(**batch).logits
    if not (found - expected).abs().max() <= _TOLERANCE * expected.abs().max().clamp(min=1.0):
        raise BadInput(
            f"{type(model).__name__} computes otherwise with fewer parts: more depends on how many there are",
            "Prune something else",
        )


def _count(known: Anatomy, name: str) -> int:
    return int(torch.Size(known.parts[name].shape).numel())
