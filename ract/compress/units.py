"""Prune inside the blocks: feed-forward neurons, and attention heads by whole key-value groups.

A unit is a group of neighbouring inputs of a block's output projection (``down_proj``, ``o_proj``) with everything that
makes them. Its score is the root mean square, over calibration text, of what it adds to the block's output: for a
neuron its activation times the norm of its column, Wanda's score (Sun et al., arXiv:2306.11695) for a structure as in
LLM-Pruner (Ma et al., arXiv:2305.11627). Every block keeps as many units as any other, so that the result is a standard
config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ract.aggregate.loaded import Batch
from ract.aggregate.members import Member, copied, open_members, with_dtype
from ract.aggregate.recipe import Recipe, TensorRecipe, Term
from ract.checkpoint.directory import ModelDirectory
from ract.compress.silence import module_of, second_moments
from ract.errors import BadInput
from ract.model.anatomy import Anatomy, Stack, anatomy
from ract.model.live import build, live_config, saved_shapes
from ract.model.projections import Attention, FeedForward, Projection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MULTIPLE = 16  # of neurons that are kept: what quantizers and fused operators count in
_OTHERWISE = "Prune neurons or blocks instead"
_WIDTH_KEY = re.compile(r"inner|inter|ffn|d_ff|hidden_dim")


@dataclass(frozen=True)
class Units:
    """The prunable units of one projection *out*: *count* groups of *size* inputs. *rows* are the projections that make
    them, each with where its rows begin and how many make a group; *target* of an encoder-decoder's decoder.
    """

    out: Projection
    count: int
    size: int
    rows: tuple[tuple[Projection, int, int], ...]
    target: bool

    def cuts(self, kept: torch.Tensor) -> dict[str, tuple[int, torch.Tensor]]:
        """Saved name → the axis along which it is cut, and the positions that stay, when the groups *kept* do."""
        found = {self.out.weight: (0 if self.out.transposed else 1, positions(kept, self.size))}
        stays: dict[Projection, list[torch.Tensor]] = {}
        for projection, begin, size in self.rows:
            stays.setdefault(projection, []).append(begin + positions(kept, size))
        for projection, pieces in stays.items():
            numbers = torch.cat(pieces)
            found[projection.weight] = (1 if projection.transposed else 0, numbers)
            if projection.bias is not None:
                found[projection.bias] = (0, numbers)
        return found


@dataclass(frozen=True)
class Choice:
    """Units that stay, block by block, and the config fields that say so."""

    kept: Mapping[Units, torch.Tensor]
    fields: dict[str, int]


def choose_neurons(model: PreTrainedModel, directory: ModelDirectory, share: float, batches: Sequence[Batch]) -> Choice:
    """The feed-forward neurons that stay when *share* of every block's go; a multiple of 16 of each.

    Raises BadInput: a feed-forward that is not one dense layer in, one out (a mixture of experts), a width that no
    config field says alone, or a share that removes nothing.
    """
    known = anatomy(directory.config)
    units = neurons(known)
    counts = {one.count: kept_neurons(one.count, share) for one in units}
    return Choice(_best(model, units, counts, batches), _width_fields(known, units, counts))


def choose_heads(model: PreTrainedModel, directory: ModelDirectory, share: float, batches: Sequence[Batch]) -> Choice:
    """The key-value groups, each with its query heads, that stay when *share* of every block's go.

    Raises BadInput where the width of a head follows from their number, where heads do not stand in separate rows, or
    for a share that removes nothing.
    """
    known = anatomy(directory.config)
    units = heads(known)
    counts = {one.count: kept_heads(one.count, share) for one in units}
    return Choice(_best(model, units, counts, batches), _head_fields(known, units, counts))


def kept_neurons(width: int, share: float) -> int:
    """How many of *width* neurons stay; BadInput when that is all of them."""
    kept = max(_MULTIPLE, round(width * (1 - share) / _MULTIPLE) * _MULTIPLE)
    if kept >= width:
        problem = f"without {share:.0%} of its {width} neurons a block would still have {kept}"
        raise BadInput(f"{problem}: widths stay multiples of {_MULTIPLE}", "Prune a larger share")
    return kept


def kept_heads(groups: int, share: float) -> int:
    """How many of *groups* key-value groups stay; BadInput when that is all of them."""
    kept = max(1, round(groups * (1 - share)))
    if kept == groups:
        what = "only one key-value group" if groups == 1 else f"{groups} key-value groups"
        raise BadInput(
            f"a block has {what}: {share:.0%} of that is none that could go", "Prune something else, or more"
        )
    return kept


def neurons(known: Anatomy) -> list[Units]:
    """Every block's neurons. Raises BadInput where a block has no dense feed-forward that is recognised."""
    found = []
    for stack in known.stacks:
        for block in stack.blocks:
            if block.feed_forward is None:
                raise BadInput(
                    f"{known.model_class} has feed-forwards that are not one dense layer (a mixture of experts?)",
                    "Prune blocks instead",
                )
            found.append(_neurons(block.feed_forward, _reads_target(known, stack)))
    return found or _nothing(known)


def heads(known: Anatomy) -> list[Units]:
    """Every block's key-value groups. Raises BadInput where the architecture does not let them be taken out."""
    found = [
        _groups(attention, known, _reads_target(known, stack))
        for stack in known.stacks
        for block in stack.blocks
        for attention in block.attentions
    ]
    return found or _nothing(known)


def cut(directory: ModelDirectory, choice: Choice) -> Recipe:
    """The model at *directory* with the units of *choice* alone. Raises BadInput for fields that say something else."""
    (member,) = open_members([directory])
    config = with_dtype({**directory.config, **choice.fields}, [member])
    cuts = {name: place for units, kept in choice.kept.items() for name, place in units.cuts(kept).items()}
    names = [*member.anatomy.parts, *(alias for alias in member.anatomy.aliases if alias in member.names)]
    tensors = tuple(_tensor(member, name, cuts.get(name)) for name in names)
    return Recipe("prune", config, tensors, [1.0])


def parameters(known: Anatomy) -> int:
    """Parameters of the model, tied ones counted once."""
    return sum(int(torch.Size(part.shape).numel()) for part in known.parts.values())


def parameters_of(units: Units) -> int:
    """Parameters of the matrices that *units* are cut from."""
    return sum(p.in_features * p.out_features for p in {units.out, *(projection for projection, _, _ in units.rows)})


def _neurons(found: FeedForward, target: bool) -> Units:
    rows = [(found.up, 0, 1)]
    if found.fused:
        rows.append((found.up, found.width, 1))
    elif found.gate is not None:
        rows.append((found.gate, 0, 1))
    return Units(found.down, found.width, 1, tuple(rows), target)


def _groups(found: Attention, known: Anatomy, target: bool) -> Units:
    width, queries = found.head_dim, found.heads // found.kv_heads * found.head_dim
    if found.layout == "separate":
        assert found.q is not None and found.k is not None and found.v is not None
        rows = ((found.q, 0, queries), (found.k, 0, width), (found.v, 0, width))
    elif found.layout == "concatenated" and found.qkv is not None:
        keys = found.heads * width
        rows = ((found.qkv, 0, queries), (found.qkv, keys, width), (found.qkv, keys + found.kv_heads * width, width))
    else:
        raise BadInput(f"{known.model_class} stores queries, keys and values interleaved", _OTHERWISE)
    return Units(found.o, found.kv_heads, queries, rows, target)


def _nothing(known: Anatomy) -> list[Units]:
    raise BadInput(f"{known.model_class} has no blocks in which something could be pruned")


def _reads_target(known: Anatomy, stack: Stack) -> bool:
    return len(known.stacks) > 1 and stack.name == "decoder"


def _best(
    model: PreTrainedModel, units: Sequence[Units], counts: Mapping[int, int], batches: Sequence[Batch]
) -> dict[Units, torch.Tensor]:
    """The numbers, in order, of the units of each that add most on *batches*."""
    modules = {one: module_of(model, one.out.weight) for one in units}
    moments = second_moments(model, {modules[one]: (one.size, one.target) for one in units}, batches)
    weights = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in weights.items()}
    found = {}
    for one in units:
        weight = weights[names[id(modules[one].weight)]].detach().double()
        columns = (weight.T if one.out.transposed else weight).unflatten(1, (one.count, one.size))
        # E‖W x‖² of a group is the trace of W E[x xᵀ] Wᵀ.
        score = torch.einsum("ogi,gij,ogj->g", columns, moments[modules[one]], columns)
        found[one] = score.topk(counts[one.count]).indices.sort().values
    return found


def _tensor(member: Member, name: str, place: tuple[int, torch.Tensor] | None) -> TensorRecipe:
    info = member.info(name)
    if place is None:
        return copied(name, 0, info)
    axis, numbers = place
    shape = tuple(len(numbers) if number == axis else size for number, size in enumerate(info.shape))

    def select(tensors: list[torch.Tensor]) -> torch.Tensor:
        return tensors[0].index_select(axis, numbers)

    return TensorRecipe(name, shape, info.dtype, (Term(0, info.name),), function=select)


def positions(kept: torch.Tensor, size: int) -> torch.Tensor:
    """The inputs that belong to the groups *kept* of *size* each."""
    return (kept[:, None] * size + torch.arange(size)).flatten()


def _width_fields(known: Anatomy, units: Sequence[Units], counts: Mapping[int, int]) -> dict[str, int]:
    """The config fields that say the feed-forwards' width, each found by what changes with it, at their new value."""
    wanted = _shapes(known, units, counts)
    fields: dict[str, int] = {}
    for key, value in known.config.items():
        unset = value is None and _WIDTH_KEY.search(key)
        for have, stay in counts.items():
            if unset or (type(value) is int and value == have):
                changed = _changed(known.config, {key: stay})
                if changed and all(wanted.get(name) == shape for name, shape in changed.items()):
                    fields[key] = stay
    if not fields or _changed(known.config, fields) != wanted:
        what = f"no field of {known.model_class}'s config says the width of its feed-forwards alone"
        raise BadInput(what, "Prune blocks instead")
    return fields


def _head_fields(known: Anatomy, units: Sequence[Units], counts: Mapping[int, int]) -> dict[str, int]:
    named: Any = type(live_config(known.config)).attribute_map
    (have, stay), *others = counts.items()
    if others:
        raise BadInput(f"the blocks of {known.model_class} have different numbers of heads", _OTHERWISE)
    query, key = (named.get(name, name) for name in ("num_attention_heads", "num_key_value_heads"))
    if query not in known.config:
        raise BadInput(f"no field of {known.model_class}'s config says how many heads there are", _OTHERWISE)
    fields = {query: known.config[query] * stay // have, "head_dim": _head_dim(known)}
    if key in known.config:
        fields[key] = stay
    try:
        build({**known.config, **fields})
    except BadInput as error:
        problem = f"{known.model_class} with {stay} of {have} key-value groups in a block is no model: {error.problem}"
        raise BadInput(problem, "Prune another share of the heads, or neurons or blocks") from error
    if _changed(known.config, fields) != _shapes(known, units, counts):
        what = f"the config of a {known.model_class} cannot say fewer heads of the same width and nothing else"
        raise BadInput(what, _OTHERWISE)
    return fields


def _head_dim(known: Anatomy) -> int:
    return next(attention.head_dim for s in known.stacks for block in s.blocks for attention in block.attentions)


def _changed(config: dict[str, Any], fields: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Saved name → new shape of every tensor that *fields* change; of all, when they make no model."""
    before = saved_shapes(build(config))
    try:
        after = saved_shapes(build({**config, **fields}))
    except BadInput:
        return dict.fromkeys(before, ())
    return {name: shape for name, shape in after.items() if before.get(name) != shape}


def _shapes(known: Anatomy, units: Sequence[Units], counts: Mapping[int, int]) -> dict[str, tuple[int, ...]]:
    found = {}
    for one in units:
        for name, (axis, numbers) in one.cuts(torch.arange(counts[one.count])).items():
            old = known.parts[name].shape
            found[name] = tuple(len(numbers) if number == axis else size for number, size in enumerate(old))
    return found
