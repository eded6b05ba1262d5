"""``manifest.json`` of an exported model: what its graphs are for, and the hash of every file. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ract.checkpoint.lineage import FileRecord, file_records
from ract.errors import BadInput

FILE_NAME = "manifest.json"
Engine = Literal["onnx", "openvino", "gguf", "ctranslate2", "litert", "executorch"]
Precision = Literal["fp32", "int8", "int4"]


class HeldOut(BaseModel):
    """What an export loses on text that nobody trained on: mean *loss* in nats a token (a classifier: a text), and
    *loss_original* of the model it was made from; *data* names the texts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    loss: float
    loss_original: float


class Manifest(BaseModel):
    """What an exported model is.

    *engine* runs it; *kind* is decoder, encoder or encoder-decoder; *precision* that of its weights; *limit* the most
    tokens it looks at (0: no limit). *labels* are a classifier's classes in order; *start* is the token a translation
    begins with, *ends* those that end a text.
    *node* is its name in the tree it comes from, *held_out* what it was measured at.
    *source* is the content hash of the model directory it was made from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    engine: Engine = "onnx"
    kind: Literal["decoder", "encoder", "encoder-decoder"]
    precision: Precision = "fp32"
    source: str = ""
    limit: int = Field(default=0, ge=0)
    labels: tuple[str, ...] = ()
    source_language: str = ""
    target_language: str = ""
    begin: int | None = None
    start: int | None = None
    ends: tuple[int, ...] = ()
    pad: int = 0
    node: str = ""
    held_out: HeldOut | None = None
    files: dict[str, FileRecord] = {}


def is_exported(directory: Path) -> bool:
    """Whether *directory* holds an exported model."""
    return (directory / FILE_NAME).is_file()


def read_manifest(directory: Path, *, verify: bool = True) -> Manifest:
    """The manifest in *directory*; with *verify*, after every file was compared with its size and hash.

    Raises BadInput when it is absent, not a manifest of this version, or a file is missing or damaged.
    """
    file = directory / FILE_NAME
    if not file.is_file():
        raise BadInput(f"{directory} holds no exported model ({FILE_NAME})", "Make one: ract export DIR --format onnx")
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except (ValidationError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{file} is not a readable manifest ({reason})", "Export the model again") from error
    names = set(manifest.files)
    if any(Path(name).name != name for name in names):
        raise BadInput(f"{file} names files outside its folder", "Export the model again")
    if verify:
        present = file_records(directory)
        wrong = sorted(name for name in names if present.get(name) != manifest.files[name])
        if wrong:
            raise BadInput(f"{directory / wrong[0]} is missing or damaged", "Export the model again")
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write *manifest* with the records of every file in *directory*."""
    from ract.checkpoint.directory import write_text

    complete = manifest.model_copy(
        update={"files": {k: v for k, v in file_records(directory).items() if k != FILE_NAME}}
    )
    write_text(directory / FILE_NAME, json.dumps(complete.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
