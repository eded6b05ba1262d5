"""What the compact decoder costs: parameters, FLOPs, bytes and memory, from its shape alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ract.cost.base import Costs, Matrices

# Width over depth of a free shape: MobileLLM's best models of 125 M and 350 M lie near 20 and 30.
_NARROWEST, _WIDEST = 16, 64


@dataclass(frozen=True)
class Shape(Costs):
    """The dimensions of a Qwen3-like decoder: grouped-query attention, QK-norm, SwiGLU, tied embeddings.

    *experts* > 1 makes every feed-forward a mixture (upcycle); *members* > 1 is an ensemble of equal models.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    experts: int = 1
    members: int = 1
    kind: Literal["decoder"] = "decoder"

    @property
    def matrices(self) -> tuple[tuple[int, int, int], ...]:
        """The weight matrices of one block as (how many, rows, columns); experts counted."""
        q, kv, h, f = self._q_size, self._kv_size, self.hidden_size, self.intermediate_size
        router = ((1, self.experts, h),) if self.experts > 1 else ()
        return ((1, q, h), (2, kv, h), (1, h, q), (2 * self.experts, f, h), (1 * self.experts, h, f), *router)

    @property
    def block_parameters(self) -> int:
        """Parameters of one block: matrices, two norms, and the norms of queries and keys."""
        return sum(n * r * c for n, r, c in self.matrices) + 2 * self.hidden_size + 2 * self.head_dim

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, the tied embedding counted once."""
        one = self.vocab_size * self.hidden_size + self.num_hidden_layers * self.block_parameters + self.hidden_size
        return self.members * one

    @property
    def _q_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def _kv_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    def forward_flops_per_token(self, block_size: int) -> float:
        """FLOPs of the forward pass for one token in a window of *block_size* tokens (all experts and members run)."""
        matrices = (
            self.num_hidden_layers * sum(n * r * c for n, r, c in self.matrices) + self.vocab_size * self.hidden_size
        )
        attention = self.num_hidden_layers * 2 * self._q_size * (block_size / 2)
        return self.members * 2.0 * (matrices + attention)

    @property
    def all_matrices(self) -> Matrices:
        """The weight matrices of all blocks of all members as (how many, rows, columns)."""
        return [(n * self.num_hidden_layers * self.members, r, c) for n, r, c in self.matrices]

    @property
    def table_parameters(self) -> int:
        """Parameters of one member's embedding."""
        return self.vocab_size * self.hidden_size

    def activation_bytes(self, tokens: int) -> float:
        """Bytes of activations and logits that a training pass over *tokens* tokens keeps."""
        width = 10 * self.hidden_size + 4 * self._q_size + 4 * self._kv_size + 4 * self.intermediate_size * self.experts
        return self.members * tokens * (self.num_hidden_layers * width * 2.5 + self.vocab_size * 14.0)

    def stacked(self, copies: int) -> Shape:
        """The shape of *copies* such models stacked in depth."""
        return replace(self, num_hidden_layers=self.num_hidden_layers * copies)

    def upcycled(self, experts: int) -> Shape:
        """The shape with the feed-forwards of *experts* such models side by side."""
        return replace(self, experts=self.experts * experts)

    def ensembled(self, members: int) -> Shape:
        """The shape of an ensemble of *members* such models (nested ensembles flatten)."""
        return replace(self, members=self.members * members)


def derive_shape(
    vocab_size: int,
    hidden_size: int,
    num_hidden_layers: int,
    *,
    num_attention_heads: int | None = None,
    num_key_value_heads: int | None = None,
    head_dim: int | None = None,
    intermediate_size: int | None = None,
) -> Shape:
    """Fill in what the dials leave open: heads of 64 (32 where 64 does not fit), two or three to
    a key-value head, SwiGLU.

    Raises ValueError where the numbers contradict each other (heads that do not divide).
    """
    head_dim = head_dim or (64 if hidden_size >= 128 and hidden_size % 64 == 0 else min(32, hidden_size))
    heads = num_attention_heads or max(1, hidden_size // head_dim)
    if num_key_value_heads is None:
        num_key_value_heads = next((heads // share for share in (2, 3) if heads % share == 0), heads)
    if heads % num_key_value_heads:
        raise ValueError(
            f"num_attention_heads = {heads} is not divisible by num_key_value_heads = {num_key_value_heads}"
        )
    if head_dim % 2:
        raise ValueError(f"head_dim = {head_dim} must be even (rotary positions turn pairs)")
    if num_attention_heads is None and hidden_size % head_dim:
        raise ValueError(
            f"hidden_size = {hidden_size} is not divisible by head_dim = {head_dim}: give num_attention_heads too"
        )
    intermediate = intermediate_size or max(32, round(hidden_size * 8 / 3 / 32) * 32)
    return Shape(vocab_size, hidden_size, num_hidden_layers, heads, num_key_value_heads, head_dim, intermediate)


def shape_for_parameters(vocab_size: int, parameters: int, num_hidden_layers: int | None = None) -> Shape:
    """The largest shape within *parameters*; where depth is open, deep and thin (MobileLLM, 2402.14905).

    Raises ValueError naming the smallest possible model when the budget is below it.
    """
    smallest = derive_shape(vocab_size, 32, num_hidden_layers or 2)
    if parameters < smallest.parameters:
        raise ValueError(
            f"{parameters:,} parameters are too few: "
            f"with a vocabulary of {vocab_size} the smallest model has {smallest.parameters:,}"
        )
    best = smallest
    for hidden in [*range(32, 512, 32), *range(512, 8193, 64)]:
        if num_hidden_layers is not None:
            depths = range(num_hidden_layers, num_hidden_layers + 1)
        else:
            depths = range(max(2, -(-hidden // _WIDEST)), hidden // _NARROWEST + 2)
        if derive_shape(vocab_size, hidden, depths[0]).parameters > parameters:
            break
        fitting = (shape for d in depths if (shape := derive_shape(vocab_size, hidden, d)).parameters <= parameters)
        best = max([best, *fitting], key=lambda shape: shape.parameters)
    return best
