"""ONNX graphs of a model: a decoder, a classifier, or an encoder-decoder, for ONNX Runtime.

A decoder is one graph that takes any number of tokens and a cache, an empty one for the beginning; an encoder-decoder
three: the encoder, the first step (which also reads the source) and every further step. Llama-like decoders are written
as fused operators (:mod:`ract.export.onnx_decoder`), everything else is traced by ``transformers.exporters``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime  # noqa: F401 - what is written is opened with it
import onnxscript  # noqa: F401 - the exporter needs it
import torch

from ract.errors import BadInput
from ract.export.onnx_decoder import why_not, write_decoder
from ract.export.source import Source
from ract.model.live import ENSEMBLE

_SAMPLE = [5, 6, 7, 8, 9]


def write(source: Source, staging: Path, precision: str) -> None:
    """Write the graphs of *source* as ``<name>.onnx`` into *staging*, their weights beside them."""
    config = source.model.config
    reason = why_not(config, precision) if source.kind == "decoder" else ""
    if reason is None:
        write_decoder(source.model, staging, precision)
        return
    if source.architecture == ENSEMBLE and source.kind != "encoder":
        raise BadInput(
            f"{source.directory} is an ensemble of models that write text, and these cannot be traced"
            + (f": {reason}" if reason else ""),
            "Export one of its members, or distil it into one model",
        )
    from transformers.exporters import OnnxExporter

    for name, program in _traced(source).items():
        file = staging / f"{name}.onnx"
        OnnxExporter.save_program(program, file)
        if precision != "fp32":
            _quantize(file, precision)


def _traced(source: Source) -> dict[str, Any]:
    from transformers.exporters import OnnxConfig, OnnxExporter

    exporter, config = OnnxExporter(), OnnxConfig(dynamic=True, ort_fusions="cpu")
    ids = torch.tensor([_SAMPLE, _SAMPLE])  # a batch of one would freeze the batch at one
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if source.kind == "encoder":
        return {"model": exporter.export(source.model, inputs, config).program}
    found = exporter.export_for_generation(source.model, inputs, config, multi_token_decode=True).components
    if source.kind == "decoder":
        return {"decode": found["decode"].program}
    encoder = exporter.export(source.model.get_encoder(), inputs, config).program
    return {"encoder": encoder, "prefill": found["prefill"].program, "decode": found["decode"].program}


def _quantize(file: Path, precision: str) -> None:
    """Quantize the weights of the graph in *file* in place, embeddings included, with ONNX Runtime's own quantizers.

    int8: a scale for each channel, and activations in 8 bits by the range they have at run time; int4: a scale for each
    32 numbers.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    graph = onnx.load(file)
    del graph.graph.value_info[:]  # traced shapes that the quantizers' own inference disagrees with
    if precision == "int8":
        types = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # of what ONNX Runtime's own operators give
        quantize_dynamic(graph, file, per_channel=True, weight_type=QuantType.QInt8, extra_options=types)
        quantized = onnx.load(file)
    else:
        options: dict[str, Any] = {"bits": 4, "block_size": 32, "is_symmetric": True, "accuracy_level": 4}
        quantizer = MatMulNBitsQuantizer(graph, op_types_to_quantize=("MatMul", "Gather"), **options)
        quantizer.process()
        quantized = quantizer.model.model
    data = file.with_name(file.name + ".data")
    data.unlink(missing_ok=True)
    onnx.save_model(quantized, file, save_as_external_data=True, location=data.name)
