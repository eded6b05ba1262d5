"""LiteRT (TensorFlow Lite) graphs of a model: a classifier or a decoder, for Android, iOS and small boards.

Phones want fixed shapes, so every graph is for one text. A classifier has a graph for each of a few lengths, shorter
texts are padded; a decoder one for a single token and one for a block of them, both with a cache of a fixed size. The
graphs of one model share its weights in the one file ``model.tflite``. Weights in 8 or 4 bits are Google's
``ai_edge_quantizer``: 8 bits for each output channel, or 4 bits in blocks of 32 with embeddings and head in 8;
activations are quantized as they come.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ract.errors import BadInput
from ract.export.source import Source

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
BLOCK = 32  # new tokens at once, for prompts
_LENGTHS = (32, 128)  # of texts that are classified, below the longest
_BLOCK_4_BIT = 32
_STAYS = "_8bit"
_LONGEST_TEXT, _LONGEST_CACHE = 512, 1024


def write(source: Source, staging: Path, precision: str) -> int:
    """Write the graphs of *source* into *staging*; returns the most tokens that they look at.

    Raises BadInput for an encoder-decoder, an ensemble of models that write, and what the converter cannot convert.
    """
    if source.kind == "encoder-decoder":
        raise BadInput(
            f"{source.directory} is an encoder-decoder, and ract's LiteRT graphs are for models with one stack",
            "Use --format onnx or openvino",
        )
    longest = _LONGEST_CACHE if source.kind == "decoder" else _LONGEST_TEXT
    limit = min(source.limit or longest, longest)
    try:
        converted = _classifier(source, limit) if source.kind == "encoder" else _decoder(source, limit)
        converted.export(str(staging / FILE_NAME))
    except Exception as error:  # tracing and converting fail with errors of every kind
        what = f"{source.directory} is a {source.architecture}, which LiteRT's converter does not take"
        raise BadInput(f"{what} ({_first_line(error)})", "Use --format onnx or openvino") from error
    config: Any = source.model.config
    _rename(staging / FILE_NAME, config.num_labels if source.kind == "encoder" else config.vocab_size)
    if precision != "fp32":
        _quantize(staging / FILE_NAME, precision)
    return limit


class _Classifier(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(input_ids=input_ids, attention_mask=attention_mask).logits}


def _classifier(source: Source, limit: int) -> Any:
    """Graphs named ``classify_<length>``."""
    graphs: Any = litert_torch
    for length in [*(length for length in _LENGTHS if length < limit), limit]:
        ids = torch.ones(1, length, dtype=torch.int32)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        graphs = graphs.signature(f"classify_{length}", _Classifier(source.model).eval(), sample_kwargs=given)
    return graphs.convert()


def _decoder(source: Source, limit: int) -> Any:
    """Graphs named ``decode`` (the file's first) and ``prefill``."""
    from ract.export.step_graph import step_graph

    graphs: Any = litert_torch
    with step_graph(source.model, limit) as step:
        for name, new in (("decode", 1), ("prefill", min(BLOCK, limit))):
            graphs = graphs.signature(name, step, sample_kwargs=step.sample(new))
        return graphs.convert()


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
    tool.quantize().export_model(str(file), overwrite=True)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
