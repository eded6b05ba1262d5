"""ONNX graphs of a model: a decoder, a classifier, or an encoder-decoder, for ONNX Runtime.

A decoder is one graph that takes any number of tokens and a cache, an empty one for the beginning; an encoder-decoder
three: the encoder, the first step (which also reads the source) and every further step.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime  # noqa: F401 - what is written is opened with it
import onnxscript  # noqa: F401 - the exporter needs it
import torch

from ract.errors import BadInput
from ract.export.onnx_decoder import why_not, write_decoder
from ract.export.source import Source

_SAMPLE = [5, 6, 7, 8, 9]


def write(source: Source, staging: Path, precision: str) -> None:
    """Write the graphs of *source* as ``<name>.onnx`` into *staging*, their weights beside them."""
    if source.kind == "decoder" and why_not(source.model.config, precision) is None:
        write_decoder(source.model, staging, precision)
        return
    if precision != "fp32":
        raise BadInput(f"{source.directory} cannot be written in {precision}: TODO", "")
    from transformers.exporters import OnnxConfig, OnnxExporter

    if source.architecture == "ract-ensemble" and source.kind != "encoder":
        raise BadInput(
            f"{source.directory} is an ensemble of models that write text, which the exporter cannot trace",
            "Export one of its members, or distil it into one model",
        )
    exporter, config = OnnxExporter(), OnnxConfig(dynamic=True, ort_fusions="cpu")
    ids = torch.tensor([_SAMPLE, _SAMPLE])  # a batch of one would freeze the batch at one
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if source.kind == "encoder":
        programs = {"model": exporter.export(source.model, inputs, config).program}
    elif source.kind == "decoder":
        found = exporter.export_for_generation(source.model, inputs, config, multi_token_decode=True)
        programs = {"decode": found.components["decode"].program}
    else:
        found = exporter.export_for_generation(source.model, inputs, config, multi_token_decode=True)
        programs = {name: found.components[name].program for name in ("prefill", "decode")}
        programs["encoder"] = exporter.export(source.model.get_encoder(), inputs, config).program
    for name, program in programs.items():
        exporter.save_program(program, staging / f"{name}.onnx")
