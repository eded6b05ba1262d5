"""Stack: blocks of the children on top of each other, a deeper model.

Depth growth by whole blocks, ``0 … L−1`` repeated, after "Stacking Your Transformers" (Du et al. 2024,
arXiv:2405.15319). Block *k* of the parent is the child's block, bit for bit. What stands outside the blocks is blended
by α: embeddings, norms, head, and T5's relative attention bias, which its first block holds for all. Works for
decoders, encoders and either or both sides of an encoder-decoder. In models that share blocks (ALBERT) the groups of
blocks are stacked, and each runs as often as before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ract.aggregate.match import Weights
from ract.aggregate.members import Member, blend_weights, blended, copied, open_members, same_kind, with_dtype
from ract.aggregate.merge import recorded
from ract.aggregate.recipe import Recipe, TensorRecipe
from ract.checkpoint.directory import ModelDirectory
from ract.errors import BadInput
from ract.model.anatomy import Anatomy, Part, Stack, anatomy
from ract.model.live import build, traits

Range = tuple[int, int, int]
Ranges = str | Sequence[Range]


@dataclass(frozen=True, slots=True)
class Slot:
    """Block *block* of child *child*, at one place of the parent."""

    child: int
    block: int


def recipe(
    children: Sequence[ModelDirectory],
    weights: Weights,
    *,
    ranges: Ranges | Mapping[str, Ranges] | None = None,
    copies: int = 1,
    sides: str = "both",
) -> Recipe:
    """The stack of *children*: by default all blocks of each in order, the whole *copies* times.

    *ranges* chooses blocks: ``[(child, start, stop), …]`` or ``"0:0-2,1:1-3"``, counted from 0 and without *stop*; for
    both sides of an encoder-decoder ``{"encoder": …, "decoder": …}``. *sides* is what grows of an encoder-decoder:
    ``both``, ``encoder`` or ``decoder``; the blocks of the other side are blended by α.

    Raises BadInput: children that compute differently, a range outside a child, a depth that the architecture cannot
    say, or a block that would compute otherwise in its new place.
    """
    members = open_members(children)
    stacks = _chosen(members[0].anatomy, sides)
    _refuse_depth_dependence(members[0].anatomy)
    same_kind(members, but=[key for s in stacks for key in _count_fields(s)])
    slots = {s.name: _slots(s, members, ranges, copies) for s in stacks}
    config = with_dtype(_config(members, stacks, slots), members)
    parent = anatomy(config)
    for stack in stacks:
        if parent.stack(stack.name).depth != len(slots[stack.name]):
            raise BadInput(f"{parent.model_class} does not take its depth from {', '.join(stack.depth_fields)}")
        _check_blocks(parent, members, stack, slots[stack.name])
    builder = _Builder(members, parent, slots, weights)
    tensors = tuple(builder.tensor(name, part) for name, part in parent.parts.items())
    aliases = {alias for member in members for alias in member.names if alias in parent.aliases}
    extra = tuple(builder.outside(alias, parent.parts[parent.aliases[alias]].shape) for alias in sorted(aliases))
    notes: dict[str, Any] = {"blocks": {name: [f"{s.child}:{s.block}" for s in found] for name, found in slots.items()}}
    if builder.borrowed:
        notes["borrowed"] = builder.borrowed
    return Recipe("stack", config, (*tensors, *extra), recorded(weights), notes)


def _chosen(known: Anatomy, sides: str) -> list[Stack]:
    names = [stack.name for stack in known.stacks]
    if not names:
        raise BadInput(f"{known.model_class} has no stack of blocks that could grow", "Use another method")
    if sides != "both" and sides not in names:
        raise BadInput(f'{known.model_class} has no side "{sides}"', f"Known: both, {', '.join(names)}")
    stacks = [stack for stack in known.stacks if sides in ("both", stack.name)]
    for stack in stacks:
        if not stack.depth_fields:
            raise BadInput(
                f"no config field of {known.model_class} counts its {stack.name} blocks", "Use another method"
            )
        if stack.run_fields and known.config[stack.run_fields[0]] % stack.depth:
            raise BadInput(f"{known.model_class} does not run each of its {stack.depth} shared blocks equally often")
    return stacks


def _refuse_depth_dependence(known: Anatomy) -> None:
    flags = [key for key, value in known.config.items() if value is True and "layer_idx" in key]
    if flags:
        raise BadInput(
            f"{flags[0]} makes blocks compute differently by depth, so they cannot be moved", "Use an ensemble"
        )


def _count_fields(stack: Stack) -> tuple[str, ...]:
    return (*stack.depth_fields, *stack.layer_fields, *stack.run_fields, *stack.bound_fields)


def _slots(
    stack: Stack, members: Sequence[Member], ranges: Ranges | Mapping[str, Ranges] | None, copies: int
) -> list[Slot]:
    if copies < 1:
        raise BadInput(f"{copies} copies make no model", "Give 1 or more")
    depths = [member.anatomy.stack(stack.name).depth for member in members]
    if isinstance(ranges, Mapping):
        unknown = set(ranges) - {s.name for s in members[0].anatomy.stacks}
        if unknown:
            members[0].anatomy.stack(min(unknown))  # says which there are
        ranges = ranges.get(stack.name)
    chosen = [(i, 0, depth) for i, depth in enumerate(depths)] if ranges is None else parse_ranges(ranges)
    for child, start, stop in chosen:
        if not 0 <= child < len(members):
            raise BadInput(
                f"range {child}:{start}-{stop} names model {child}", f"Models count from 0 to {len(members) - 1}"
            )
        if not 0 <= start < stop <= depths[child]:
            raise BadInput(
                f"range {child}:{start}-{stop} is not within the {depths[child]} {stack.name} blocks of model {child}",
                "A range start-stop counts from 0 and leaves out its stop",
            )
    return [Slot(child, block) for child, start, stop in chosen for block in range(start, stop)] * copies


def parse_ranges(ranges: Ranges) -> list[Range]:
    """``"0:0-2,1:1-3"`` as ``[(0, 0, 2), (1, 1, 3)]``; a list is given back. BadInput when it reads otherwise."""
    if not isinstance(ranges, str):
        return [(int(child), int(start), int(stop)) for child, start, stop in ranges]
    found = [re.fullmatch(r"\s*(\d+):(\d+)-(\d+)\s*", piece) for piece in ranges.split(",")]
    if not all(found):
        raise BadInput(f'"{ranges}" is no list of block ranges', "Write model:start-stop, as in 0:0-2,1:1-3")
    return [(int(m[1]), int(m[2]), int(m[3])) for m in found if m is not None]


def _config(members: Sequence[Member], stacks: Sequence[Stack], slots: Mapping[str, list[Slot]]) -> dict[str, Any]:
    """The first child's config with the new depth in every field that counts it."""
    config = dict(members[0].directory.config)
    for stack in stacks:
        found, full = slots[stack.name], members[0].anatomy.config
        config.update(dict.fromkeys(stack.depth_fields, len(found)))
        for key in stack.layer_fields:
            config[key] = [members[s.child].anatomy.config[key][s.block] for s in found]
        for key in stack.run_fields:
            runs = {m.anatomy.config[key] / m.anatomy.stack(stack.name).depth for m in members}
            if len(runs) > 1:
                raise BadInput(f"the models run their shared blocks {sorted(runs)} times ({key})", "Give equal ones")
            config[key] = len(found) * (full[key] // stack.depth)
        for key in stack.bound_fields:
            config[key] = max(full[key], len(found))
    return config


@dataclass
class _Builder:
    members: Sequence[Member]
    parent: Anatomy
    slots: Mapping[str, list[Slot]]
    weights: Weights
    borrowed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.alpha = blend_weights(self.weights, self.members)
        self.inside = [
            {(part.stack, part.block, part.suffix): name for name, part in member.anatomy.parts.items()}
            for member in self.members
        ]

    def tensor(self, name: str, part: Part) -> TensorRecipe:
        """The parent's tensor *name*: a child's own inside the blocks that grow, blended elsewhere."""
        if part.block is None or part.stack is None or part.stack not in self.slots:
            return self.outside(name, part.shape)
        slot = self.slots[part.stack][part.block]
        member = self.members[slot.child]
        source = self.inside[slot.child].get((part.stack, slot.block, part.suffix))
        if source is None:
            source = self._norm_before(member, part)
            self.borrowed[name] = source
        return copied(name, slot.child, member.info(source))

    def outside(self, name: str, shape: tuple[int, ...]) -> TensorRecipe:
        """A tensor that is not of one block: blended by α."""
        return blended(name, self.members, self.alpha(name), shape)

    def _norm_before(self, member: Member, part: Part) -> str:
        """For a norm that a first block does without (ModernBERT): the one of the embeddings, which it relied on."""
        known = member.anatomy
        kind = part.suffix.rpartition(".")[2]
        found = [
            name
            for name, other in known.parts.items()
            if other.role == "norm" and known.group(name) == "embeddings" and name.endswith(f".{kind}")
        ]
        if part.role != "norm" or len(found) != 1 or known.parts[found[0]].shape != part.shape:
            raise BadInput(
                f"the first block of {member.directory.path} lacks {part.suffix}, so it can only stand first"
            )
        return found[0]


def _check_blocks(parent: Anatomy, members: Sequence[Member], stack: Stack, slots: Sequence[Slot]) -> None:
    """BadInput where a block of the live parent differs from the child's it comes from in anything but weights."""
    grown = build(parent.config).get_submodule(stack.prefix)
    sources = [build(member.anatomy.config).get_submodule(stack.prefix) for member in members]
    for place, slot in enumerate(slots):
        ours = traits(grown.get_submodule(str(place)))
        theirs = traits(sources[slot.child].get_submodule(str(slot.block)))
        odd = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
        # A norm that only the parent's block has is filled in; a tensor that only the child's has would be lost.
        odd = [
            key
            for key in odd
            if not (key.endswith(":class") and "Norm" in str(ours[key]) and theirs.get(key) == "Identity")
        ]
        if odd:
            raise BadInput(
                f"{stack.name} block {slot.block} of model {slot.child} would compute differently as block {place} "
                f"({odd[0].replace(':', ' ')} {theirs.get(odd[0])} would be {ours.get(odd[0])})",
                "Choose other ranges: some architectures tie what a block does to its place",
            )
