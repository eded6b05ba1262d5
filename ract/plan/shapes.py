"""The shape of the leaf from the plan's dials, and of the single model that the tree is compared with."""

from __future__ import annotations

from dataclasses import replace

from ract.cost import (
    AnyShape,
    CheckpointShape,
    EncoderDecoderShape,
    EncoderShape,
    Shape,
    derive_encoder_decoder_shape,
    derive_encoder_shape,
    derive_shape,
    shape_for_parameters,
)
from ract.errors import BadInput
from ract.plan.graph import ModelSettings
from ract.plan.levels import levels
from ract.plan.schema import CompactTable, Plan

_WIDTHS = (*range(32, 512, 32), *range(512, 4097, 64))
_DROPOUT = 0.1
_BLOCKS = {"encoder": 3, "encoder-decoder": 3}


def model_settings(plan: Plan) -> ModelSettings:
    """What the plan's models are made with beside their shape."""
    compact = plan.compact
    usual = None if compact.from_ is not None else 0.0 if plan.kind == "decoder" else _DROPOUT
    return ModelSettings(compact.max_position_embeddings, usual if compact.dropout is None else compact.dropout)


def leaf_shape(plan: Plan, labels: int = 0) -> AnyShape:
    """The shape of the compact transformer; *labels* classes where it classifies.

    Raises BadInput where the dials contradict each other.
    """
    compact, vocab = plan.compact, plan.tokenizer.vocab_size
    try:
        if compact.parameters is not None and compact.hidden_size is not None:
            raise ValueError("give parameters or hidden_size, not both")
        if plan.kind == "decoder":
            return _decoder(plan, compact, vocab)
        unused = [k for k in ("num_key_value_heads", "head_dim") if getattr(compact, k) is not None]
        if unused:
            raise ValueError(f"{unused[0]} is for decoders, not for an {plan.kind}")
        depth = compact.num_hidden_layers or _BLOCKS[plan.kind]
        if compact.parameters is not None:
            return _widest(_small(compact, plan.kind, vocab, labels, 32, depth), compact.parameters)
        return _small(compact, plan.kind, vocab, labels, compact.hidden_size or 128, depth)
    except ValueError as error:
        raise BadInput(f"[compact]: {error}", "Change one of the two") from error


def single_shape(final: AnyShape, leaf: AnyShape) -> AnyShape:
    """One model with about the parameters of *final*: *final* itself where it is one dense model.

    Of an ensemble's members it is one as deep as the leaf and wider; of a checkpoint, which comes in one size, the
    checkpoint.
    """
    if isinstance(final, CheckpointShape):
        return leaf
    if final.members == 1 and getattr(final, "experts", 1) == 1:
        return final
    if isinstance(final, Shape):
        return shape_for_parameters(final.vocab_size, final.parameters)
    return _widest(replace(final, members=1), final.parameters)


def _decoder(plan: Plan, compact: CompactTable, vocab: int) -> Shape:
    if compact.parameters is not None:
        depth = compact.num_hidden_layers or (2 if any(level.method == "stack" for level in levels(plan)) else None)
        return shape_for_parameters(vocab, compact.parameters, depth)
    return derive_shape(
        vocab,
        compact.hidden_size or 192,
        compact.num_hidden_layers or 2,
        num_attention_heads=compact.num_attention_heads,
        num_key_value_heads=compact.num_key_value_heads,
        head_dim=compact.head_dim,
        intermediate_size=compact.intermediate_size,
    )


def _small(
    compact: CompactTable, kind: str, vocab: int, labels: int, hidden: int, depth: int
) -> EncoderShape | EncoderDecoderShape:
    given = {
        "num_attention_heads": compact.num_attention_heads,
        "intermediate_size": compact.intermediate_size,
    }
    if kind == "encoder":
        return derive_encoder_shape(vocab, hidden, depth, num_labels=labels, **given)
    return derive_encoder_decoder_shape(vocab, hidden, depth, **given)


def _widest(smallest: EncoderShape | EncoderDecoderShape, parameters: int) -> EncoderShape | EncoderDecoderShape:
    """The widest model of the same depth within *parameters*. Raises ValueError when none is small enough."""
    vocab, depth = smallest.vocab_size, smallest.num_hidden_layers
    best = None
    for hidden in _WIDTHS:
        shape: EncoderShape | EncoderDecoderShape = (
            derive_encoder_shape(vocab, hidden, depth, num_labels=smallest.num_labels)
            if isinstance(smallest, EncoderShape)
            else derive_encoder_decoder_shape(vocab, hidden, depth)
        )
        if shape.parameters > parameters:
            break
        best = shape
    if best is None:
        raise ValueError(
            f"{parameters:,} parameters are too few: with a vocabulary of {vocab} and {depth} blocks "
            f"the smallest model has {shape.parameters:,}"
        )
    return best
