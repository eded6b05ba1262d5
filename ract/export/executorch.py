"""ExecuTorch programs of a model: a classifier or a decoder, for phones and boards, on XNNPACK.

The graphs (:mod:`ract.export.fixed`) are methods of the one file ``model.pte`` and share its weights. Weights in 8 or 4
bits are torchao's, before the graphs are traced: 8 bits for each output channel, or 4 bits in groups of 32 with
embeddings and head in 8; activations are quantized as they come.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
    XnnpackDynamicallyQuantizedPartitioner,
    XnnpackPartitioner,
)
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from torch import nn
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.utils import unwrap_tensor_subclass
from transformers.pytorch_utils import Conv1D

from ract.errors import BadInput
from ract.export.fixed import first_line, fixed_graphs, limit_of
from ract.export.source import Source

FILE_NAME = "model.pte"
_GROUP = 32


def write(source: Source, staging: Path, precision: str) -> int:
    """Write the graphs of *source* into *staging*; returns the most tokens that they look at.

    Raises BadInput for an encoder-decoder and for what ExecuTorch does not take.
    """
    limit = limit_of(source)
    try:
        program = _program(source if precision == "fp32" else _quantized(source, precision), precision)
    except Exception as error:  # tracing and lowering fail with errors of every kind
        what = f"{source.directory} is of class {source.architecture}, which ExecuTorch does not take"
        raise BadInput(f"{what} ({first_line(error)})", "Use --format onnx or litert") from error
    with (staging / FILE_NAME).open("wb") as file:
        program.write_to_file(file)
    return limit


def _program(source: Source, precision: str) -> Any:
    with fixed_graphs(source, torch.int64) as graphs, torch.no_grad():  # embeddings in 8 bits take nothing else
        traced = {name: torch.export.export(graph, (), sample) for name, (graph, sample) in graphs.items()}
    quantized = precision != "fp32"
    partitioners = [XnnpackDynamicallyQuantizedPartitioner()] if quantized else []
    lowered = to_edge_transform_and_lower(
        traced,
        partitioner={name: [*partitioners, XnnpackPartitioner()] for name in traced},
        compile_config=EdgeCompileConfig(_check_ir_validity=not quantized),  # torchao's operators are none of its own
    )
    settings = ExecutorchBackendConfig(
        # The cache stays where the caller has it, so that it is not copied for every token.
        memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
        do_quant_fusion_and_const_prop=quantized,
    )
    return lowered.to_executorch(settings)


def _quantized(source: Source, precision: str) -> Source:
    """A copy of *source* with weights of fewer bits; what the quantizer has no rule for stays as it is."""
    model = copy.deepcopy(source.model)
    _untie(model)
    heads = {id(one.get_output_embeddings()) for one in model.modules() if hasattr(one, "get_output_embeddings")}
    whole = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
    if precision == "int4":
        bits: torch.dtype = getattr(torch, "int4")  # noqa: B009 - which torch's own stubs do not know
        grouped = Int8DynamicActivationIntxWeightConfig(weight_dtype=bits, weight_granularity=PerGroup(_GROUP))
        quantize_(model, grouped, lambda m, _: _dense(m) and id(m) not in heads and m.in_features % _GROUP == 0)
        quantize_(model, whole, lambda m, _: _dense(m) and (id(m) in heads or m.in_features % _GROUP != 0))
    else:
        quantize_(model, whole, lambda m, _: _dense(m))
    # Of tokens only: positions are looked up by constants, and folding these leaves torchao's operators behind.
    words = {id(one.get_input_embeddings()) for one in model.modules() if hasattr(one, "get_input_embeddings")}
    rows = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    quantize_(model, rows, lambda m, _: id(m) in words and isinstance(m, nn.Embedding))
    return replace(source, model=unwrap_tensor_subclass(model))


def _dense(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _untie(model: nn.Module) -> None:
    """Give every matrix a tensor of its own, and make GPT-2's, which are stored the other way round, usual ones."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, Conv1D):
                dense = nn.Linear(module.nx, module.nf)
                dense.weight, dense.bias = nn.Parameter(module.weight.detach().T.contiguous()), module.bias
                setattr(parent, name, dense)
            elif isinstance(module, nn.Linear):
                module.weight = nn.Parameter(module.weight.detach().clone())
