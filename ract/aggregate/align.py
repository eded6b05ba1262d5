"""Alignment: permute the units of one model so that they correspond to another's, before the two are merged.

Two models from different seeds may compute the same with their units in another order; their plain average is then
worse than either. Git Re-Basin (Ainsworth et al. 2023, arXiv:2209.04836): choose the permutations that bring the
weights closest, by coordinate descent over linear assignments. The permuted model computes exactly what it did before.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.func import functional_call
from transformers import PreTrainedModel

from ract.aggregate.activations import match_activations
from ract.aggregate.engine import companion_files
from ract.aggregate.inputs import same_tokenizers
from ract.aggregate.loaded import (
    Batch,
    Parameters,
    Progress,
    between,
    load,
    mean_loss,
    parameters,
    probe,
    same_shapes,
)
from ract.aggregate.permutation import KINDS, RESIDUAL, Permutation, Symmetries, best_assignment, symmetries
from ract.checkpoint.directory import open_model, publish, write_lineage
from ract.checkpoint.lineage import Cost, Lineage, Parent, content_hash, read_lineage
from ract.checkpoint.live import quiet
from ract.errors import BadInput, RactError
from ract.model.anatomy import anatomy

_SWEEPS = 50
_TOLERANCE = 1e-4  # of the largest output, in fp32: a wrong permutation is off by its order of magnitude


@dataclass(frozen=True)
class Alignment:
    """*parameters* are the other model's, permuted; *kinds* what was permuted, *by* what units were matched (weights or
    activations); distances are to the reference, as ``‖θ − θ_reference‖ / ‖θ_reference‖`` over all parameters."""

    parameters: Parameters
    kinds: tuple[str, ...]
    by: str
    distance_before: float
    distance_after: float


def align(
    reference: Path,
    other: Path,
    out: Path,
    *,
    batches: Sequence[Batch] = (),
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write *other*, permuted towards *reference*, as the model directory *out*; it computes what *other* does.

    Feed-forward neurons, attention heads and hidden units are permuted where the architecture allows it exactly (each
    of *kinds* is tried on the model first). Units are matched by their weights and, where there are *batches* (with
    labels), also by their activations; the matching whose midpoint with *reference* has the lower loss is taken. Both
    models are held in memory, as is one fp32 copy of each.

    Raises BadInput: models of different shapes, or *out* exists and *force* is not given; RactError: the architecture
    has no such symmetry, or the permuted model does not compute what it did.
    """
    same_tokenizers([open_model(reference), open_model(other)])
    moved, first = load(other), load(reference)
    found = aligned(first, moved, (reference, other), batches=batches, kinds=kinds, seed=seed, progress=progress)
    expected = _outputs(moved, parameters(moved))
    with publish(out, force=force) as staging:
        for name, parameter in moved.named_parameters():
            parameter.data = found.parameters[name].contiguous()
        with quiet():
            moved.save_pretrained(staging)
        for file in (*companion_files(other), other / "config.json"):
            shutil.copyfile(file, staging / file.name)
        saved = load(staging)
        if not _agree(expected, _outputs(saved, parameters(saved))):
            raise RactError(f"{other} computes something else after alignment, saving and loading")
        write_lineage(staging, _lineage(out.name, reference, other, found, seed))
    return out


def _lineage(name: str, reference: Path, other: Path, found: Alignment, seed: int) -> Lineage:
    below = read_lineage(other)
    return Lineage(
        name=name,
        method="align",
        level=below.level if below else 0,
        parents=[Parent(name=path.name, content=content_hash(path), path=str(path)) for path in (other, reference)],
        plan={"permuted": list(found.kinds), "matched_by": found.by},
        seed=seed,
        cost=Cost(total_flops=below.cost.total_flops if below else 0.0),
        metrics_before={"distance": found.distance_before},
        metrics_after={"distance": found.distance_after},
    )


def aligned(
    reference: PreTrainedModel,
    other: PreTrainedModel,
    paths: tuple[Path, Path],
    *,
    batches: Sequence[Batch] = (),
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Alignment:
    """The parameters of *other* permuted towards *reference*, in memory; *paths* name the two in messages."""
    for kind in kinds:
        if kind not in KINDS:
            raise BadInput(f'there is no permutation of "{kind}"', f"Known: {', '.join(KINDS)}")
    target, own = parameters(reference), parameters(other)
    same_shapes([target, own], paths)
    shape = anatomy(other.config.to_dict() | {"architectures": [type(other).__name__]})
    suggested = symmetries(other, shape)
    exact = exact_kinds(other, suggested, kinds, seed)
    if not exact:
        raise RactError(f"no units of {type(other).__name__} can be permuted exactly", "Use --method ensemble")
    allowed = suggested.restricted(exact)
    candidates = {"weights": allowed.apply(own, match_weights(target, own, allowed, seed=seed, progress=progress))}
    if batches:
        found = match_activations(reference, other, shape, allowed, batches)
        candidates["activations"] = allowed.apply(own, found)
        by = min(candidates, key=lambda name: mean_loss(other, batches, between(target, candidates[name], 0.5)))
    else:
        by = "weights"
    permuted = candidates[by]
    if not _agree(_outputs(other, own), _outputs(other, permuted)):
        raise RactError(f"{paths[1]} computes something else after alignment")
    return Alignment(permuted, exact, by, distance(target, own), distance(target, permuted))


def exact_kinds(
    model: PreTrainedModel, suggested: Symmetries, kinds: Sequence[str] = KINDS, seed: int = 0
) -> tuple[str, ...]:
    """Those of *kinds* whose permutation leaves the outputs of *model* alone: each is tried with random permutations.

    Hidden units, for instance, cannot be permuted where sinusoidal positions are added or where the output is the
    hidden state itself, nor heads where each has a slope of its own (ALiBi).
    """
    own, generator = parameters(model), torch.Generator().manual_seed(seed)
    return tuple(
        kind
        for kind in kinds
        if suggested.groups(kind)
        and _agree(_outputs(model, own), _outputs(model, suggested.apply(own, suggested.random(kind, generator))))
    )


def match_weights(
    reference: Mapping[str, torch.Tensor],
    other: Mapping[str, torch.Tensor],
    allowed: Symmetries,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Permutation:
    """The permutation of *other* that maximises ``⟨θ_reference, P θ_other⟩``, by coordinate descent (a local optimum).

    Each group in turn is assigned optimally with all others fixed, in random order, until nothing changes.
    """
    target = {name: reference[name].float() for name in allowed.axes}
    moved = {name: other[name].float() for name in allowed.axes}
    bound = set(allowed.key_values.values())
    groups = [group for group in allowed.sizes if group not in bound]
    total: Permutation = {group: torch.arange(size) for group, size in allowed.sizes.items()}
    generator = torch.Generator().manual_seed(seed)
    for sweep in range(_SWEEPS):
        # The embeddings tell hidden units apart whatever the order of all other units: they go first.
        order = sorted(torch.randperm(len(groups), generator=generator).tolist(), key=lambda i: groups[i] != RESIDUAL)
        changed = False
        for i in order:
            step = best_assignment(groups[i], allowed, _similarities(target, moved, allowed, groups[i]))
            if all(torch.equal(index, torch.arange(len(index))) for index in step.values()):
                continue
            changed = True
            touched = {axis.name for group in step for axis, _, _ in allowed.of_group(group)}
            moved |= allowed.apply({name: moved[name] for name in touched}, step)
            total |= {group: total[group][index] for group, index in step.items()}
        if progress:
            progress("match units", sweep + 1, _SWEEPS)
        if not changed:
            break
    return total


def distance(reference: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """``‖other − reference‖ / ‖reference‖`` over all parameters."""
    difference = sum(float((other[name].float() - p.float()).square().sum()) for name, p in reference.items())
    return float((difference / sum(float(p.float().square().sum()) for p in reference.values())) ** 0.5)


def _similarities(target: Parameters, moved: Parameters, allowed: Symmetries, group: str) -> dict[str, torch.Tensor]:
    return {
        one: _similarity(target, moved, allowed, one)
        for one in (group, allowed.key_values.get(group))
        if one is not None
    }


def _similarity(target: Parameters, moved: Parameters, allowed: Symmetries, group: str) -> torch.Tensor:
    """``S[i, j]``: the inner product of everything that belongs to unit *i* of *target* and unit *j* of *moved*."""
    size = allowed.sizes[group]
    total = torch.zeros(size, size)
    for axis, start, width in allowed.of_group(group):
        a, b = (
            tensors[axis.name].movedim(axis.dim, 0)[start : start + size * width].reshape(size, -1)
            for tensors in (target, moved)
        )
        total += a @ b.T
    return total


@torch.no_grad()
def _outputs(model: PreTrainedModel, replaced: Parameters) -> Parameters:
    """What the model is for, computed with the parameters *replaced*: its outputs, without inner states."""
    output = functional_call(model, {n: p.float() for n, p in replaced.items()}, args=(), kwargs=probe(model))
    return {
        name: value
        for name, value in output.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not name.startswith("encoder_")
    }


def _agree(first: Parameters, second: Parameters) -> bool:
    """Whether two outputs are the same to rounding."""
    return all(
        bool((first[name] - second[name]).abs().max() <= _TOLERANCE * first[name].abs().max().clamp_min(1e-6))
        for name in first
    )
