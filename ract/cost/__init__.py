"""What a model costs, from its shape alone: parameters, FLOPs, bytes, memory. Needs neither torch nor transformers."""

from ract.cost.base import BYTES_PER_PARAMETER, MANY_LENGTHS_BYTES, Costs, machine_memory_bytes
from ract.cost.decoder import Shape, derive_shape, shape_for_parameters
from ract.cost.encoder import (
    MASKED_SHARE,
    CheckpointShape,
    EncoderDecoderShape,
    EncoderShape,
    derive_encoder_decoder_shape,
    derive_encoder_shape,
)

AnyShape = Shape | EncoderShape | EncoderDecoderShape | CheckpointShape

__all__ = [
    "BYTES_PER_PARAMETER",
    "MANY_LENGTHS_BYTES",
    "MASKED_SHARE",
    "AnyShape",
    "CheckpointShape",
    "Costs",
    "EncoderDecoderShape",
    "EncoderShape",
    "Shape",
    "derive_encoder_decoder_shape",
    "derive_encoder_shape",
    "derive_shape",
    "machine_memory_bytes",
    "shape_for_parameters",
]
