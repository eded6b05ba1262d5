"""What a compact encoder and a compact encoder-decoder cost, from their shapes alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ract.cost.base import Costs, Matrices

_HEAD_DIM = 32
# Bytes that autograd keeps for each element it meets in a block, measured on the decoder (see its activations).
_KEPT = 2.5


@dataclass(frozen=True)
class EncoderShape(Costs):
    """The dimensions of a ModernBERT-like encoder: rotary positions, GeGLU, no biases, every block attends to all.

    With *num_labels* it classifies; without it carries the masked-language-model head (its output embedding is tied).
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    num_labels: int = 0
    members: int = 1
    kind: Literal["encoder"] = "encoder"

    @property
    def matrices(self) -> Matrices:
        """The weight matrices of one block as (how many, rows, columns)."""
        h, f = self.hidden_size, self.intermediate_size
        return ((1, 3 * h, h), (1, h, h), (1, 2 * f, h), (1, h, f))

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, the tied embedding counted once."""
        h = self.hidden_size
        # The first block has no norm before its attention: the embedding's own norm stands there.
        blocks = self.num_hidden_layers * (sum(n * r * c for n, r, c in self.matrices) + 2 * h) - h
        head = h * h + h + (self.num_labels * h + self.num_labels if self.num_labels else self.vocab_size)
        return self.members * (self.vocab_size * h + h + blocks + h + head)

    @property
    def all_matrices(self) -> Matrices:
        """The weight matrices of all blocks and heads of all members as (how many, rows, columns)."""
        h = self.hidden_size
        blocks = [(n * self.num_hidden_layers * self.members, r, c) for n, r, c in self.matrices]
        return [*blocks, (self.members, h, h), *([(self.members, self.num_labels, h)] if self.num_labels else [])]

    @property
    def table_parameters(self) -> int:
        """Parameters of one member's embedding."""
        return self.vocab_size * self.hidden_size

    def forward_flops_per_token(self, block_size: int) -> float:
        """FLOPs for one token of a text of *block_size* tokens; the masked 30% of them go through the head."""
        blocks = self.num_hidden_layers * sum(n * r * c for n, r, c in self.matrices)
        head = 0.0 if self.num_labels else MASKED_SHARE * self.hidden_size * (self.hidden_size + self.vocab_size)
        attention = self.num_hidden_layers * 2 * self.hidden_size * block_size
        return self.members * 2.0 * (blocks + head + attention)

    def activation_bytes(self, tokens: int) -> float:
        """Bytes of activations and logits that a training pass over *tokens* tokens keeps."""
        width = 18 * self.hidden_size + 4 * self.intermediate_size
        logits = 0.0 if self.num_labels else MASKED_SHARE * self.vocab_size * 14.0
        return self.members * tokens * (self.num_hidden_layers * width * _KEPT + logits)

    def stacked(self, copies: int) -> EncoderShape:
        """The shape of *copies* such models stacked in depth."""
        return replace(self, num_hidden_layers=self.num_hidden_layers * copies)

    def ensembled(self, members: int) -> EncoderShape:
        """The shape of an ensemble of *members* such models."""
        return replace(self, members=self.members * members)

    def masked(self) -> EncoderShape:
        """The same encoder with the masked-language-model head."""
        return replace(self, num_labels=0)


MASKED_SHARE = 0.3  # of the tokens are predicted in masked-language-model training (Wettig et al., 2202.08005)


@dataclass(frozen=True)
class EncoderDecoderShape(Costs):
    """The dimensions of a Marian-like encoder-decoder: as many blocks on either side, one embedding for both and for
    the head, fixed sinusoidal positions.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    members: int = 1
    kind: Literal["encoder-decoder"] = "encoder-decoder"

    @property
    def _encoder_block(self) -> Matrices:
        h, f = self.hidden_size, self.intermediate_size
        return ((4, h, h), (1, f, h), (1, h, f))

    @property
    def _decoder_block(self) -> Matrices:
        h, f = self.hidden_size, self.intermediate_size
        return ((8, h, h), (1, f, h), (1, h, f))

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, the shared embedding counted once."""
        h, f, layers = self.hidden_size, self.intermediate_size, self.num_hidden_layers
        encoder = sum(n * r * c for n, r, c in self._encoder_block) + 4 * h + (f + h) + 2 * 2 * h
        decoder = sum(n * r * c for n, r, c in self._decoder_block) + 8 * h + (f + h) + 3 * 2 * h
        return self.members * (self.vocab_size * h + layers * (encoder + decoder))

    @property
    def all_matrices(self) -> Matrices:
        """The weight matrices of all blocks of all members as (how many, rows, columns)."""
        both = (*self._encoder_block, *self._decoder_block)
        return [(n * self.num_hidden_layers * self.members, r, c) for n, r, c in both]

    @property
    def table_parameters(self) -> int:
        """Parameters of one member's embedding."""
        return self.vocab_size * self.hidden_size

    def forward_flops_per_token(self, block_size: int) -> float:
        """FLOPs for one token of a pair: half of its *block_size* tokens are source, half are target."""
        source = sum(n * r * c for n, r, c in self._encoder_block)
        # Keys and values of the cross-attention (2 h²) are made from the source; the head reads the target.
        target = sum(n * r * c for n, r, c in self._decoder_block)
        blocks = self.num_hidden_layers * (source + target) / 2
        attention = self.num_hidden_layers * 2 * self.hidden_size * (block_size / 2) * (1 + 0.5 + 1) / 2
        return self.members * 2.0 * (blocks + attention + self.table_parameters / 2)

    def activation_bytes(self, tokens: int) -> float:
        """Bytes of activations and logits that a training pass over *tokens* padded tokens keeps."""
        width = 40 * self.hidden_size + 4 * self.intermediate_size  # measured: dropout and its masks are part of it
        return self.members * tokens * (self.num_hidden_layers * width * _KEPT + self.vocab_size * 14.0)

    def stacked(self, copies: int) -> EncoderDecoderShape:
        """The shape of *copies* such models stacked in depth, on both sides."""
        return replace(self, num_hidden_layers=self.num_hidden_layers * copies)

    def ensembled(self, members: int) -> EncoderDecoderShape:
        """The shape of an ensemble of *members* such models."""
        return replace(self, members=self.members * members)


@dataclass(frozen=True)
class CheckpointShape(Costs):
    """What is known of a checkpoint of any architecture: parameters inside its blocks and outside of them.

    *tables* are the parameters of its embeddings (and positions), *head* those of the output matrix that every token
    goes through (0 where there is none), *block* the matrices of one block as (how many, rows, columns).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    block_parameters: int
    outside_parameters: int
    tables: int
    head: int
    block: tuple[tuple[int, int, int], ...]
    stacks: int = 1
    members: int = 1
    kind: Literal["checkpoint"] = "checkpoint"

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, tied ones counted once."""
        return self.members * (self.outside_parameters + self.num_hidden_layers * self.block_parameters)

    @property
    def all_matrices(self) -> Matrices:
        """The weight matrices of all blocks of all members as (how many, rows, columns)."""
        return [(n * self.num_hidden_layers * self.members, r, c) for n, r, c in self.block]

    @property
    def table_parameters(self) -> int:
        """Parameters of one member's embeddings."""
        return self.tables

    def forward_flops_per_token(self, block_size: int) -> float:
        """FLOPs for one token; of an encoder-decoder (*stacks* = 2) a token goes through one half."""
        matrices = self.num_hidden_layers * sum(n * r * c for n, r, c in self.block) + self.head
        attention = self.num_hidden_layers * 2 * self.hidden_size * block_size
        return self.members * 2.0 * (matrices + attention) / self.stacks

    def activation_bytes(self, tokens: int) -> float:
        """Bytes of activations and logits that a training pass over *tokens* tokens keeps."""
        logits = self.vocab_size * 14.0 if self.head else 0.0
        return self.members * tokens * (self.num_hidden_layers * 34 * self.hidden_size * _KEPT + logits)

    def stacked(self, copies: int) -> CheckpointShape:
        """The shape of *copies* such models stacked in depth."""
        return replace(self, num_hidden_layers=self.num_hidden_layers * copies)

    def ensembled(self, members: int) -> CheckpointShape:
        """The shape of an ensemble of *members* such models."""
        return replace(self, members=self.members * members)


def derive_encoder_shape(
    vocab_size: int,
    hidden_size: int,
    num_hidden_layers: int,
    *,
    num_labels: int,
    num_attention_heads: int | None = None,
    intermediate_size: int | None = None,
) -> EncoderShape:
    """Fill in what the dials leave open: heads of 32, a GeGLU of 8/3 of the width. Raises ValueError as
    :func:`derive_encoder_decoder_shape` does."""
    heads = _heads(hidden_size, num_attention_heads)
    intermediate = intermediate_size or max(32, round(hidden_size * 8 / 3 / 32) * 32)
    return EncoderShape(vocab_size, hidden_size, num_hidden_layers, heads, intermediate, num_labels)


def derive_encoder_decoder_shape(
    vocab_size: int,
    hidden_size: int,
    num_hidden_layers: int,
    *,
    num_attention_heads: int | None = None,
    intermediate_size: int | None = None,
) -> EncoderDecoderShape:
    """Fill in what the dials leave open: heads of 32, a feed-forward of four times the width.

    Raises ValueError where the heads do not divide the width.
    """
    heads = _heads(hidden_size, num_attention_heads)
    return EncoderDecoderShape(vocab_size, hidden_size, num_hidden_layers, heads, intermediate_size or 4 * hidden_size)


def _heads(hidden_size: int, given: int | None) -> int:
    heads = given or max(1, hidden_size // _HEAD_DIM)
    if hidden_size % heads or (hidden_size // heads) % 2:
        raise ValueError(
            f"hidden_size = {hidden_size} does not divide into {heads} heads of an even width: "
            f"choose a multiple of {_HEAD_DIM}"
        )
    return heads
