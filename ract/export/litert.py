"""LiteRT (TensorFlow Lite) graphs of a model: a classifier or a decoder, for Android, iOS and small boards.

The graphs (:mod:`ract.export.fixed`) are signatures of the one file ``model.tflite`` and share its weights. Weights in
8 or 4 bits are made by ``ai_edge_quantizer``: 8 bits for each output channel, or 4 bits in blocks of 32 with embeddings
and head in 8; activations are quantized as they come.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch

from ract.errors import BadInput
from ract.export.fixed import first_line, fixed_graphs, limit_of
from ract.export.source import Source
from ract.runtime.engines.fixed import muted

try:
    import flatbuffers
    import litert_torch
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.qtyping import TFLOperationName
except ImportError as error:
    raise BadInput(
        "ract export --format litert needs Google's converter, which holds other packages at older versions",
        "Install it into an environment of its own: python -m venv litert, "
        "litert/bin/pip install 'ract[train,litert-export]', then litert/bin/ract export …",
    ) from error

FILE_NAME = "model.tflite"
_BLOCK_4_BIT = 32
_STAYS = "_8bit"


def write(source: Source, staging: Path, precision: str) -> int:
    """Write the graphs of *source* into *staging*; returns the most tokens that they look at.

    Raises BadInput for an encoder-decoder and for what the converter does not take.
    """
    limit = limit_of(source)
    converted: Any = litert_torch
    try:
        with fixed_graphs(source, torch.int32) as graphs, muted():
            for name, (graph, sample) in graphs.items():
                converted = converted.signature(name, graph, sample_kwargs=sample)
            converted.convert().export(str(staging / FILE_NAME))
    except Exception as error:  # tracing and converting fail with errors of every kind
        what = f"{source.directory} is of class {source.architecture}, which LiteRT's converter does not take"
        raise BadInput(f"{what} ({first_line(error)})", "Use --format onnx or openvino") from error
    config: Any = source.model.config
    _rename(staging / FILE_NAME, config.num_labels if source.kind == "encoder" else config.vocab_size)
    if precision != "fp32":
        _quantize(staging / FILE_NAME, precision)
    return limit


def _rename(file: Path, outputs: int) -> None:
    """Name the tensors in *file* by their numbers: with the paths of their modules, as they come, the names of a small
    model are larger than its weights. What a matrix that stays in 8 bits computes is marked: the head, with *outputs*
    rows, which is the embeddings as often as not, and matrices whose rows no block divides.
    """
    graphs = schema.ModelT.InitFromPackedBuf(file.read_bytes(), 0)
    codes = [code.builtinCode for code in graphs.operatorCodes]
    for number, graph in enumerate(graphs.subgraphs):
        for place, tensor in enumerate(graph.tensors):
            tensor.name = f"{number}.{place}".encode()
        for operator in graph.operators:
            if codes[operator.opcodeIndex] == schema.BuiltinOperator.FULLY_CONNECTED:
                rows, columns = graph.tensors[operator.inputs[1]].shape
                if rows == outputs or columns % _BLOCK_4_BIT:
                    graph.tensors[operator.outputs[0]].name += _STAYS.encode()
    packer = flatbuffers.Builder()
    packer.Finish(graphs.Pack(packer), b"TFL3")
    file.write_bytes(packer.Output())


def _quantize(file: Path, precision: str) -> None:
    """Quantize the weights of the graphs in *file* in place."""
    rules = recipe.dynamic_wi8_afp32()
    if precision == "int4":
        dense = TFLOperationName.FULLY_CONNECTED
        rules += recipe.dynamic_wi4b32_afp32(operation_name=dense)
        rules += recipe.dynamic_wi8c_afp32(operation_name=dense, regex=_STAYS)
    tool = quantizer.Quantizer(str(file))
    tool.load_quantization_recipe(rules)
    with redirect_stderr(io.StringIO()):  # progress bars
        tool.quantize().export_model(str(file), overwrite=True)
