"""``manifest.json`` of an exported model: what its graphs are for, and the hash of every file.

Read without pydantic: on a small board its import costs more memory and time than many a model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ract.checkpoint.files import FileRecord, file_records
from ract.errors import BadInput

FILE_NAME = "manifest.json"
FORMAT = 1
Engine = Literal["onnx", "openvino", "gguf", "ctranslate2", "litert", "executorch"]
Kind = Literal["decoder", "encoder", "encoder-decoder"]
Precision = Literal["fp32", "int8", "int4"]


@dataclass(frozen=True)
class HeldOut:
    """What an export loses on text that nobody trained on: mean *loss* in nats a token (a classifier: a text), and
    *loss_original* of the model it was made from; *data* names the texts.
    """

    data: str
    loss: float
    loss_original: float


@dataclass(frozen=True)
class Manifest:
    """What an exported model is.

    *engine* runs it; *kind* is decoder, encoder or encoder-decoder; *precision* that of its weights; *limit* the most
    tokens it looks at (0: no limit). *labels* are a classifier's classes in order; *start* is the token a translation
    begins with, *first* one that must follow (the language, for mBART and NLLB), *last* one that must stand at the
    limit, *never* the sequences of tokens it must not contain, *ends* the tokens that end a text. *source* is the
    content hash of the model directory it was made from, *members* how many models it is an ensemble of, *node* its
    name in the tree, *held_out* what it was measured at.
    """

    kind: Kind
    format: int = FORMAT
    engine: Engine = "onnx"
    precision: Precision = "fp32"
    source: str = ""
    limit: int = 0
    labels: tuple[str, ...] = ()
    source_language: str = ""
    target_language: str = ""
    begin: int | None = None
    start: int | None = None
    first: int | None = None
    last: int | None = None
    ends: tuple[int, ...] = ()
    never: tuple[tuple[int, ...], ...] = ()
    pad: int = 0
    members: int = 1
    node: str = ""
    held_out: HeldOut | None = None
    files: dict[str, FileRecord] = field(default_factory=dict)


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
        manifest = _parsed(json.loads(file.read_bytes()))
    except (
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # not JSON, not UTF-8, a key or a value that is none of ours
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{file} is not a readable manifest ({reason})", "Export the model again") from error
    if any(Path(name).name != name for name in manifest.files):
        raise BadInput(f"{file} names files outside its folder", "Export the model again")
    if verify:
        present = file_records(directory)
        wrong = sorted(name for name, record in manifest.files.items() if present.get(name) != record)
        if wrong:
            raise BadInput(f"{directory / wrong[0]} is missing or damaged", "Export the model again")
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write *manifest* with the records of every file in *directory*."""
    from ract.checkpoint.directory import write_text

    given = asdict(replace(manifest, files=file_records(directory, without=(FILE_NAME,))))
    text = json.dumps({**given, "digest": _digest(given)}, indent=2, ensure_ascii=False)
    write_text(directory / FILE_NAME, text + "\n")


def _digest(given: dict[str, Any]) -> str:
    """A hash of the manifest itself: a flipped bit in it may leave a manifest that says something else."""
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _parsed(given: Any) -> Manifest:
    """The manifest that the JSON value *given* stands for; ValueError or TypeError, naming the key, for any other."""
    if not isinstance(given, dict):
        raise TypeError("it is no object")
    given = dict(given)
    if given.pop("digest", None) != _digest(given):
        raise ValueError("its digest is not that of its content")
    known = {one.name for one in fields(Manifest)}
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"unknown key {key}")
        if not _CHECKS.get(key, _is_text)(value):
            raise ValueError(f"{key} cannot be {json.dumps(value)[:80]}")
    if "kind" not in given:
        raise ValueError("kind is missing")
    values: dict[str, Any] = {key: _as_tuple(value) for key, value in given.items()}
    if values.get("held_out") is not None:
        values["held_out"] = HeldOut(**values["held_out"])
    values["files"] = {name: FileRecord(**record) for name, record in given.get("files", {}).items()}
    return Manifest(**values)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_token(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_held_out(value: Any) -> bool:
    return value is None or _is_record(value, {"data": str, "loss": float, "loss_original": float})


def _are_files(value: Any) -> bool:
    types: dict[str, type] = {"size_bytes": int, "sha256": str}
    return isinstance(value, dict) and all(_is_record(one, types) for one in value.values())


def _is_record(value: Any, types: dict[str, type]) -> bool:
    if not isinstance(value, dict) or set(value) != set(types):
        return False
    return all(
        (type(value[k]) in (int, float) and math.isfinite(value[k])) if kind is float else type(value[k]) is kind
        for k, kind in types.items()
    )


def _list_of(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(one, value))


def _one_of(known: tuple[Any, ...]) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, str) and value in known


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# What a value must be, by key; every other key holds a text.
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "format": _one_of((FORMAT,)),
    "engine": _one_of(get_args(Engine)),
    "kind": _one_of(get_args(Kind)),
    "precision": _one_of(get_args(Precision)),
    "limit": _is_number,
    "pad": _is_number,
    "members": _is_number,
    "begin": _is_token,
    "start": _is_token,
    "first": _is_token,
    "last": _is_token,
    "labels": _list_of(_is_text),
    "ends": _list_of(_is_number),
    "never": _list_of(lambda one: bool(one) and _list_of(_is_number)(one)),
    "held_out": _is_held_out,
    "files": _are_files,
}
