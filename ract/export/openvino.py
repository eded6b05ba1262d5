"""OpenVINO graphs of a model: a decoder, a classifier, or an encoder-decoder, for processors of Intel, AMD and Arm.

The graphs are those of :mod:`ract.export.onnx`, by the same library (``transformers.exporters``). Weights in 8 or 4
bits are NNCF's (``compress_weights``, without data): 8 bits symmetric for each output channel, embeddings and head
included; 4 bits asymmetric in groups of 64, embeddings and head in 8.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ract.errors import BadInput, needs_extra
from ract.export.source import Source
from ract.runtime.engines.openvino import openvino  # imported there, without its reports of use

if TYPE_CHECKING:
    from openvino import Model, Node
    from transformers import Cache

_SAMPLE = [5, 6, 7, 8, 9]
_GROUP = 64


def write(source: Source, staging: Path, precision: str) -> None:
    """Write the graphs of *source* as ``<name>.xml`` into *staging*, their weights in ``<name>.bin``.

    Raises BadInput for an ensemble of models that write text, MissingExtra where NNCF is needed and absent.
    """
    if source.architecture == "ract-ensemble" and source.kind != "encoder":
        raise BadInput(
            f"{source.directory} is an ensemble of models that write text, which the exporter cannot trace",
            "Export one of its members, or distil it into one model",
        )
    for name, graph in _graphs(source).items():
        for result in filter(_passes_through, graph.get_results()):
            graph.remove_result(result)
        openvino.save_model(_compressed(graph, precision), staging / f"{name}.xml", compress_to_fp16=False)


def _graphs(source: Source) -> dict[str, Model]:
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter
    from transformers.exporters.utils import decompose_for_generation

    # The caches stay inputs and outputs: as OpenVINO's own variables they are no faster at these sizes, and a state
    # could not be used twice.
    exporter, config = OpenVINOExporter(), OpenVINOConfig(dynamic=True, stateful=False)
    ids = torch.tensor([_SAMPLE, _SAMPLE])  # a batch of one would freeze the batch at one
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if source.kind == "encoder":
        return {"model": exporter.export_program(source.model, inputs, config)[0]}
    parts = decompose_for_generation(source.model, inputs, multi_token_decode=True)
    if source.kind == "decoder":  # what reads further tokens reads the first ones as well
        model, given = parts["decode"]
        parts = {"decode": (model, {**given, "past_key_values": _whole(given["past_key_values"])})}
    graphs = {name: exporter.export_program(model, given, config)[0] for name, (model, given) in parts.items()}
    if source.kind == "encoder-decoder":
        graphs["encoder"] = exporter.export_program(source.model.get_encoder(), inputs, config)[0]
    return graphs


def _whole(cache: Cache) -> Cache:
    """*cache* with layers that keep everything: what has left a window the mask hides, and a state can be shortened."""
    from transformers import DynamicCache

    whole = DynamicCache()
    for number, layer in enumerate(cache.layers):
        whole.update(layer.keys, layer.values, number)
    return whole


def _passes_through(result: Node) -> bool:
    """Whether an output is only one of the inputs again, such as the keys and values of the source.

    OpenVINO writes such an output into the caller's own array, the next time when that is gone already.
    """
    node = result.input_value(0).get_node()
    while node.get_type_name() in ("Convert", "ConvertLike"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Parameter"


def _compressed(graph: Model, precision: str) -> Model:
    """*graph* with its weights in *precision*."""
    if precision == "fp32":
        return graph
    with needs_extra(f"ract export --format openvino --precision {precision}", "openvino-export"):
        import nncf
    if precision == "int8":
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
    return nncf.compress_weights(
        graph,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        ratio=1.0,
        group_size=_GROUP,
        advanced_parameters=nncf.AdvancedCompressionParameters(
            # Rows that no group of 64 divides: smaller groups, or 8 bits where even 16 do not.
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST,
            min_adjusted_group_size=16,
        ),
    )
