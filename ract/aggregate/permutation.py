"""Permutations of a network's units that leave its function alone: which axes of which tensors move together.

Three kinds: the neurons of a feed-forward; the heads of an attention (with grouped queries, key-value groups as wholes
and query heads within their group; never inside a head, where rotary embeddings tell the dimensions apart); and the
hidden units that the residual stream carries through the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from transformers import PreTrainedModel

from ract.model.anatomy import Anatomy
from ract.model.live import saved_names
from ract.model.projections import Attention, FeedForward, Projection

KINDS = ("feed_forward", "heads", "residual")
RESIDUAL = "residual"
Permutation = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Axis:
    """Axis *dim* of the tensor *name*, cut into *segments* ``(group, width)``: the units of *group*, *width* rows each.

    A fused query-key-value projection has three segments; a group named ``""`` stays where it is.
    """

    name: str
    dim: int
    segments: tuple[tuple[str, int], ...]


@dataclass
class Symmetries:
    """The groups of units that may be permuted: their *sizes*, and the *axes* by tensor that move with them.

    *key_values* maps a group of query heads to the group of key-value heads it is bound to (grouped-query attention).
    """

    sizes: dict[str, int] = field(default_factory=dict)
    axes: dict[str, list[Axis]] = field(default_factory=dict)
    key_values: dict[str, str] = field(default_factory=dict)

    def groups(self, kind: str) -> list[str]:
        """The groups of one of :data:`KINDS`."""
        return [group for group in self.sizes if group.split(" ")[0] == kind]

    def restricted(self, kinds: Sequence[str]) -> Symmetries:
        """These symmetries without the groups of other kinds."""
        kept = {group: size for group, size in self.sizes.items() if group.split(" ")[0] in kinds}
        bound = {heads: kv for heads, kv in self.key_values.items() if heads in kept}
        return Symmetries(kept | {kv: self.sizes[kv] for kv in bound.values()}, self.axes, bound)

    def of_group(self, group: str) -> Iterator[tuple[Axis, int, int]]:
        """``(axis, first row, width)`` of every segment that *group* moves."""
        for axes in self.axes.values():
            for axis in axes:
                start = 0
                for name, width in axis.segments:
                    if name == group:
                        yield axis, start, width
                    start += width * self.sizes.get(name, 1)

    def apply(self, parameters: Mapping[str, torch.Tensor], permutation: Permutation) -> dict[str, torch.Tensor]:
        """*parameters* with unit ``permutation[group][i]`` moved to place *i*; absent groups stay."""
        return {name: self._applied(name, tensor, permutation) for name, tensor in parameters.items()}

    def _applied(self, name: str, tensor: torch.Tensor, permutation: Permutation) -> torch.Tensor:
        for axis in self.axes.get(name, ()):
            if any(group in permutation for group, _ in axis.segments):
                tensor = tensor.index_select(axis.dim, self._index(axis, tensor.shape[axis.dim], permutation))
        return tensor

    def _index(self, axis: Axis, length: int, permutation: Permutation) -> torch.Tensor:
        index, start = torch.arange(length), 0
        for group, width in axis.segments:
            size = self.sizes.get(group, 1)
            if group in permutation:
                rows = permutation[group].unsqueeze(1) * width + torch.arange(width)
                index[start : start + size * width] = start + rows.flatten()
            start += size * width
        return index

    def random(self, kind: str, generator: torch.Generator) -> Permutation:
        """A random permutation of every group of *kind*, query heads staying with their key-value head."""
        result: Permutation = {}
        for group in self.groups(kind):
            if group in self.key_values:
                kv = self.key_values[group]
                order = torch.randperm(self.sizes[kv], generator=generator)
                share = self.sizes[group] // self.sizes[kv]
                inner = [torch.randperm(share, generator=generator) for _ in order]
                result[kv] = order
                result[group] = torch.cat([o * share + i for o, i in zip(order, inner, strict=True)])
            else:
                result[group] = torch.randperm(self.sizes[group], generator=generator)
        return result


def best_assignment(group: str, allowed: Symmetries, similarity: Mapping[str, torch.Tensor]) -> Permutation:
    """The permutation of *group*, and of the key-value heads it is bound to, of the greatest total similarity.

    ``similarity[group][i, j]`` says how alike unit *i* of the reference and unit *j* of the other model are; that of
    the key-value heads may be left out.
    """
    own = similarity[group]
    if group not in allowed.key_values:
        return {group: _best(own)[0]}
    kv = allowed.key_values[group]
    count = allowed.sizes[kv]
    share = allowed.sizes[group] // count
    blocks = own.reshape(count, share, count, share).transpose(1, 2)
    inner = [[_best(blocks[a, b]) for b in range(count)] for a in range(count)]
    between = torch.tensor([[value for _, value in row] for row in inner], dtype=torch.float64)
    order, _ = _best(between + similarity[kv] if kv in similarity else between)
    heads = torch.cat([b * share + inner[a][b][0] for a, b in enumerate(order.tolist())])
    return {kv: order, group: heads}


def _best(similarity: torch.Tensor) -> tuple[torch.Tensor, float]:
    """For each row its column in the assignment of the greatest sum, and that sum; ties and noise change nothing."""
    rows, columns = linear_sum_assignment(similarity.double().numpy(), maximize=True)
    best, stay = float(similarity[rows, columns].sum()), float(similarity.diagonal().sum())
    if best <= stay + 1e-6 * abs(stay):
        return torch.arange(len(similarity)), stay
    return torch.from_numpy(columns), best


def symmetries(model: PreTrainedModel, anatomy: Anatomy) -> Symmetries:
    """What the structure of *model* suggests may be permuted, by its names in memory.

    Suggested, not proved: :func:`ract.aggregate.align.exact_kinds` puts each kind to the test on the model itself.
    """
    found = Symmetries()
    disk = {one: name for name, saved in saved_names(model).items() for one in saved}
    names = [name for name, _ in model.named_parameters()]
    # A tied tensor is saved under one of its names, and named_parameters knows it by its first.
    memory = {one: name if name in names else anatomy.aliases.get(one, name) for one, name in disk.items()}
    # What is not saved (Marian's sinusoids) is made anew on loading, in its own order.
    stored = {name: parameter for name, parameter in model.named_parameters() if name in memory.values()}
    builder = _Builder(found, stored, memory)
    for stack in anatomy.stacks:
        biased = any(p.role == "position" and p.stack == stack.name and p.block is None for p in anatomy.parts.values())
        for block in stack.blocks:
            for attention in block.attentions:
                builder.attention(attention, movable=not biased)
            if block.feed_forward is not None:
                builder.feed_forward(block.feed_forward)
    builder.residual(anatomy)
    return found


class _Builder:
    """Collects axes, from names on disk to names in memory."""

    def __init__(self, found: Symmetries, parameters: dict[str, torch.nn.Parameter], memory: dict[str, str]) -> None:
        self.found, self.parameters, self.memory = found, parameters, memory

    def add(self, saved: str, dim: int, *segments: tuple[str, int]) -> None:
        name = self.memory.get(saved, saved)
        if name in self.parameters:
            self.found.axes.setdefault(name, []).append(Axis(name, dim, segments))

    def out(self, projection: Projection, *segments: tuple[str, int]) -> None:
        """The outputs of *projection*, bias included."""
        self.add(projection.weight, 1 if projection.transposed else 0, *segments)
        if projection.bias is not None:
            self.add(projection.bias, 0, *segments)

    def into(self, projection: Projection, *segments: tuple[str, int]) -> None:
        """The inputs of *projection*."""
        self.add(projection.weight, 0 if projection.transposed else 1, *segments)

    def feed_forward(self, ffn: FeedForward) -> None:
        group = f"feed_forward {ffn.path}"
        self.found.sizes[group] = ffn.width
        self.out(ffn.up, *[(group, 1)] * (2 if ffn.fused else 1))
        if ffn.gate is not None:
            self.out(ffn.gate, (group, 1))
        self.into(ffn.down, (group, 1))

    def attention(self, attention: Attention, *, movable: bool) -> None:
        grouped = attention.kv_heads != attention.heads
        if not movable or (grouped and attention.layout == "interleaved"):
            return
        size, group = attention.head_dim, f"heads {attention.path}"
        kv = f"key_values {attention.path}" if grouped else group
        self.found.sizes |= {group: attention.heads, kv: attention.kv_heads}
        if grouped:
            self.found.key_values[group] = kv
        if attention.qkv is not None:
            fused = (
                [(group, 3 * size)] if attention.layout == "interleaved" else [(group, size), (kv, size), (kv, size)]
            )
            self.out(attention.qkv, *fused)
        for projection, owner in ((attention.q, group), (attention.k, kv), (attention.v, kv)):
            if projection is not None:
                self.out(projection, (owner, size))
        self.into(attention.o, (group, size))
        for name, parameter in self.parameters.items():  # norms over all heads at once (OLMo 2)
            match = re.search(r"\.(q|k)_?(?:norm|ln|layernorm)\.(?:weight|bias)$", name)
            if match and name.startswith(f"{attention.path}.") and parameter.ndim == 1:
                owner, heads = (group, attention.heads) if match[1] == "q" else (kv, attention.kv_heads)
                if parameter.shape[0] == heads * size != size:
                    self.add(name, 0, (owner, size))

    def residual(self, anatomy: Anatomy) -> None:
        """Every axis as long as the residual stream is wide, but those of vocabularies and those placed already."""
        width = residual_width(anatomy)
        if width is None:
            return
        self.found.sizes[RESIDUAL] = width
        inner = self._inner_axes(anatomy)
        # Matrices with a row per token, place or label; the rest of a head (a masked LM's transform) is in the stream.
        rows = {saved for saved, part in anatomy.parts.items() if part.role in ("embedding", "position")}
        tables = {self.memory.get(saved, saved) for saved in rows | set(anatomy.head)}
        for name, parameter in self.parameters.items():
            for dim, length in enumerate(parameter.shape):
                row = dim == 0 and parameter.ndim > 1 and name in tables
                if length == width and dim not in inner.get(name, set()) and not row:
                    self.found.axes.setdefault(name, []).append(Axis(name, dim, ((RESIDUAL, 1),)))

    def _inner_axes(self, anatomy: Anatomy) -> dict[str, set[int]]:
        """Axes inside attentions and feed-forwards: never the residual stream's, even where they are as long."""
        inner: dict[str, set[int]] = {}
        for block in (b for stack in anatomy.stacks for b in stack.blocks):
            ffn = block.feed_forward
            outs = [p for a in block.attentions for p in (a.q, a.k, a.v, a.qkv)] + ([ffn.up, ffn.gate] if ffn else [])
            ins = [a.o for a in block.attentions] + ([ffn.down] if ffn else [])
            for projection, out in [(p, True) for p in outs if p] + [(p, False) for p in ins]:
                dim = int(out == projection.transposed)
                inner.setdefault(self.memory.get(projection.weight, projection.weight), set()).add(dim)
                if out and projection.bias:
                    inner.setdefault(self.memory.get(projection.bias, projection.bias), set()).add(0)
        return inner


def residual_width(anatomy: Anatomy) -> int | None:
    """How many hidden units the residual stream has, or None where no block says so."""
    for block in (b for stack in anatomy.stacks for b in stack.blocks):
        for projection in [a.o for a in block.attentions] + ([block.feed_forward.down] if block.feed_forward else []):
            return projection.out_features
    return None
