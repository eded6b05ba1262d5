"""ONNX graphs of a model, through ``transformers.exporters``: a decoder, a classifier, or an encoder-decoder.

A decoder is one graph that takes any number of tokens and a cache, an empty one for the beginning; an encoder-decoder
three: the encoder, the first step (which also reads the source) and every further step.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ract.checkpoint.directory import publish
from ract.checkpoint.lineage import content_hash
from ract.checkpoint.live import load_model, quiet
from ract.data.tokenizer import copy_tokenizer, load_tokenizer
from ract.errors import BadInput, needs_extra
from ract.evaluate.classification import positions
from ract.runtime.locate import model_at
from ract.runtime.manifest import Manifest, write_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLE = [5, 6, 7, 8, 9]


def export_onnx(model_dir: str | Path, out: str | Path, *, force: bool = False) -> Path:
    """Write the model at *model_dir* (or the final node of a run) as ONNX graphs with its tokenizer into *out*.

    The result is loaded in ONNX Runtime and compared with the original before it appears (:mod:`ract.export.verify`).
    Raises BadInput for an architecture that cannot be exported (with the reason), and when *out* exists already.
    """
    from ract.export.verify import compare

    with needs_extra("ract export --format onnx", "train"):
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    directory = model_at(model_dir)
    model = load_model(directory, dtype=torch.float32)
    tokenizer = load_tokenizer(directory)
    with publish(Path(out), force=force) as staging:
        kind = _kind(model, directory)
        with _silent():
            _write(kind, model, staging)
        copy_tokenizer(directory, staging)
        write_manifest(staging, _manifest(kind, model, tokenizer, directory))
        compare(model, staging)
    return Path(out)


def _kind(model: PreTrainedModel, directory: Path) -> str:
    name = type(model).__name__
    if model.config.model_type == "ract-ensemble" and not name.endswith("ForSequenceClassification"):
        raise BadInput(
            f"{directory} is an ensemble of models that write text, which the exporter cannot trace",
            "Export one of its members, or distil it into one model",
        )
    if name.endswith("ForSequenceClassification"):
        return "encoder"
    if model.config.is_encoder_decoder:
        return "encoder-decoder"
    if model.can_generate():
        return "decoder"
    raise BadInput(f"{directory} is a {name}, which neither writes nor classifies text", "Export a model with a head")


def _write(kind: str, model: PreTrainedModel, folder: Path) -> None:
    """The graphs of *model* as ``<name>.onnx`` with their weights beside them."""
    from transformers.exporters import OnnxConfig, OnnxExporter

    exporter, config = OnnxExporter(), OnnxConfig(dynamic=True, ort_fusions="cpu")
    ids = torch.tensor([_SAMPLE, _SAMPLE])  # a batch of one would freeze the batch at one
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "encoder":
        programs = {"model": exporter.export(model, inputs, config).program}
    elif kind == "decoder":
        found = exporter.export_for_generation(model, inputs, config, multi_token_decode=True)
        programs = {"decode": found.components["decode"].program}
    else:
        found = exporter.export_for_generation(model, inputs, config, multi_token_decode=True)
        programs = {name: found.components[name].program for name in ("prefill", "decode")}
        programs["encoder"] = exporter.export(model.get_encoder(), inputs, config).program
    for name, program in programs.items():
        exporter.save_program(program, folder / f"{name}.onnx")


def _manifest(kind: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> Manifest:
    config: Any = model.config
    generation = getattr(model, "generation_config", None)
    given = getattr(generation, "eos_token_id", None)
    ends = given if isinstance(given, list) else [given, tokenizer.eos_token_id]
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return Manifest(
        kind=kind,
        source=content_hash(directory),
        limit=positions(model, tokenizer) or 0,
        labels=tuple(str(config.id2label[i]) for i in range(config.num_labels)) if kind == "encoder" else (),
        source_language=str(getattr(config, "source_language", "") or ""),
        target_language=str(getattr(config, "target_language", "") or ""),
        begin=begin if kind == "decoder" else None,
        start=getattr(generation, "decoder_start_token_id", None) if kind == "encoder-decoder" else None,
        ends=tuple(sorted({int(end) for end in ends if end is not None})) if kind != "encoder" else (),
        pad=int(tokenizer.pad_token_id or 0),
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Without the exporter's prints, remarks and warnings; what fails is raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet(), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
