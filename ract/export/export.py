"""Write a model in another format, open what was written in its own runtime, and compare, before it counts as done."""

from __future__ import annotations

import hashlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from ract.checkpoint.directory import publish
from ract.checkpoint.live import quiet
from ract.data.tokenizer import copy_tokenizer
from ract.errors import BadInput, RactError, nearest, needs_extra
from ract.export.source import Source, load_source
from ract.export.verify import Sample, compare, sample
from ract.runtime.engines.base import open_graphs
from ract.runtime.manifest import Engine, HeldOut, Precision, write_manifest

# What ``pip install "ract[…]"`` has to name for each format.
EXTRAS: dict[str, str] = {form: form for form in get_args(Engine)} | {"onnx": "train", "litert": "litert-export"}


@dataclass(frozen=True)
class Exported:
    """An export: where it is, its size, and how far it is from the original (:func:`ract.export.verify.compare`)."""

    path: Path
    size_bytes: int
    measured: dict[str, Any] = field(default_factory=dict)


def export(
    model_dir: str | Path,
    out: str | Path,
    *,
    format: Engine = "onnx",
    precision: Precision = "fp32",
    data: Sequence[str] = (),
    force: bool = False,
) -> Exported:
    """Write the model at *model_dir* (or the final node of a run) with its tokenizer into the folder *out*.

    *format* is onnx, openvino, gguf, ctranslate2, litert or executorch; *precision* fp32, int8 or int4, of the weights.
    The result is opened in its own runtime and compared with the original, on the texts of the files *data* where they
    are given, else on what the model itself writes. Raises BadInput for what the format does not support (with the
    reason) and when *out* exists already, MissingExtra where the format's packages are not installed, RactError when
    the result is not the same model.
    """
    _known("format", format, get_args(Engine))
    _known("precision", precision, get_args(Precision))
    _writer(format)  # before the model is loaded for nothing
    source = load_source(model_dir)
    texts = hashlib.sha256("\0".join(map(str, data)).encode()).hexdigest()
    return export_source(source, Path(out), format, precision, sample(source, data), data=texts, force=force)


def export_source(
    source: Source,
    out: Path,
    format: Engine,
    precision: Precision,
    given: Sample,
    *,
    data: str = "",
    node: str = "",
    force: bool = False,
) -> Exported:
    """:func:`export` for a model that is loaded, compared on *given*, whose texts *data* names; *node*: its name in the
    tree.
    """
    writer = _writer(format)
    with publish(out, force=force) as staging:
        with needs_extra(f"ract export --format {format}", EXTRAS[format]), silent():
            limit = writer.write(source, staging, precision)
        if not (staging / "tokenizer.json").is_file():
            copy_tokenizer(source.directory, staging)
        manifest = replace(source.manifest(format, precision), node=node)
        if limit:  # of graphs of a fixed size: less than the model itself looks at
            manifest = replace(manifest, limit=limit)
        write_manifest(staging, manifest)
        measured = compare(source.model, open_graphs(staging, verify=False), given)
        if precision == "fp32" and not measured["same"]:
            raise RactError(
                f"a probability differs from the original's by {measured['largest_difference']:.1e}",
                "Report this with the model's config.json: the export is wrong",
            )
        if given.held_out:
            held_out = HeldOut(data=data, loss=measured["loss_exported"], loss_original=measured["loss"])
            write_manifest(staging, replace(manifest, held_out=held_out))
    return Exported(out, sum(file.stat().st_size for file in out.iterdir()), measured)


def _writer(format: Engine) -> Any:
    """The module that writes *format*. Raises MissingExtra where its packages are not installed."""
    with needs_extra(f"ract export --format {format}", EXTRAS[format]), silent():
        return importlib.import_module(f"ract.export.{format}")


def _known(what: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise BadInput(f'there is no {what} "{given}"', nearest(given, known))


@contextmanager
def silent() -> Iterator[None]:
    """Without the converters' prints, remarks and warnings; what fails is raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet(), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
