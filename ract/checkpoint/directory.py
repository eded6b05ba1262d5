"""Open a model directory with clear errors, and publish one atomically.

A directory is written aside, flushed, and renamed into place: whatever is killed and whenever, a name either holds
a whole model or nothing. Staging folders of dead processes are swept by the next writer beside them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ract import __version__
from ract.checkpoint.files import file_records
from ract.checkpoint.lineage import FILE_NAME, Lineage, read_lineage
from ract.errors import BadInput, disk_errors
from ract.locks import held, is_abandoned

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_GRACE_SECONDS = 2.0


@dataclass(frozen=True)
class ModelDirectory:
    """A checkpoint on disk that was seen to be one: *config* parsed, *shards* present.

    *shards* are the weight files in index order; reading their headers is the tensor reader's work.
    """

    path: Path
    config: dict[str, Any]
    shards: tuple[Path, ...]
    lineage: Lineage | None

    @property
    def size_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(shard.stat().st_size for shard in self.shards)

    @property
    def has_tokenizer(self) -> bool:
        """Whether a fast tokenizer lies beside the weights."""
        return (self.path / "tokenizer.json").is_file()


def open_model(path: str | os.PathLike[str]) -> ModelDirectory:
    """The model directory at *path*.

    Raises BadInput: no such directory, no or unreadable ``config.json``, no weights, an index naming absent shards,
    or only pickled weights (``.bin``), which can run code when opened and are therefore not read here.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise BadInput(
            f"{directory} is not a directory", "Give the path of a model directory (config.json + *.safetensors)"
        )
    config = read_json(directory / "config.json", what=f"{directory} has no config.json")
    return ModelDirectory(directory, config, _shards(directory), read_lineage(directory))


def read_json(path: Path, what: str = "") -> dict[str, Any]:
    """The JSON object in *path*; BadInput when it is absent, not JSON, or not an object."""
    if not path.is_file():
        raise BadInput(what or f"{path} does not exist", "A model directory holds config.json and *.safetensors")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} is not valid JSON ({error})", "Copy the file again from its source") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds no JSON object", "Copy the file again from its source")
    return value


def _shards(directory: Path) -> tuple[Path, ...]:
    index = directory / INDEX_FILE
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
            raise BadInput(f"{index} has no usable weight_map", "Copy the file again from its source")
        shards = tuple(directory / name for name in dict.fromkeys(names.values()))
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise BadInput(f"{directory} lacks the shard {missing[0]} named in its index", "Copy the missing file")
        return shards
    if (directory / SINGLE_FILE).is_file():
        return (directory / SINGLE_FILE,)
    found = sorted(directory.glob("*.safetensors"))
    if found:
        return tuple(found)
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
        raise BadInput(
            f"{directory} holds only pickled weights, which can run code when opened",
            "Convert them to safetensors, or give the flag that allows pickled weights if you trust the source",
        )
    raise BadInput(f"{directory} holds no weights (*.safetensors)", "Give a directory that holds a trained model")


@contextmanager
def publish(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A fresh folder to fill; it becomes *target* by one rename when the block ends, and vanishes if it fails.

    Raises BadInput when *target* exists and *force* is not given. With *force* the old directory stays in place
    until the new one is complete. The file modes follow the user's umask.
    """
    target = target.absolute()
    recover(target.parent)
    if target.exists() and not force:
        raise BadInput(f"{target} exists already", "Choose another output folder or give --force to replace it")
    staging = target.parent / f".{target.name}.staging-{secrets.token_hex(4)}"
    with disk_errors(target):
        staging.mkdir(parents=True)
        with held(staging):
            try:
                yield staging
                flush(staging)
                _swap(staging, target)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise


def write_lineage(directory: Path, lineage: Lineage) -> Lineage:
    """Write ``lineage.json`` as the last file of *directory*, with the record of every file beside it."""
    complete = lineage.model_copy(update={"ract": __version__, "files": file_records(directory, without=(FILE_NAME,))})
    write_text(directory / FILE_NAME, complete.model_dump_json(indent=2) + "\n")
    return complete


def write_text(path: Path, text: str) -> None:
    """Replace *path* by *text* in one step: written aside, flushed, renamed."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with disk_errors(path):
        try:
            with aside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def verify_files(directory: Path) -> bool:
    """Whether every file named in the lineage is present with the recorded size and hash."""
    lineage = read_lineage(directory)
    return (
        lineage is not None and bool(lineage.files) and file_records(directory, without=(FILE_NAME,)) == lineage.files
    )


def recover(folder: Path) -> None:
    """Remove staging folders whose writer is dead; put back a directory whose replacement was cut short."""
    if not folder.is_dir():
        return
    for path in folder.glob(".*.old-*"):
        original = folder / path.name[1:].rsplit(".old-", 1)[0]
        if not is_abandoned(path, _GRACE_SECONDS):
            continue
        if original.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(original)
    for path in folder.glob(".*.staging-*"):
        if is_abandoned(path, _GRACE_SECONDS):
            shutil.rmtree(path, ignore_errors=True)


def flush(directory: Path) -> None:
    """fsync every file below *directory* and the directory itself, and give the files ordinary modes."""
    umask = os.umask(0)
    os.umask(umask)
    for path in [p for p in directory.rglob("*") if p.is_file()]:
        path.chmod(0o666 & ~umask)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Make the names in *directory* durable (a no-op where directories cannot be opened)."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        sync_directory(target.parent)
        return
    old = target.parent / f".{target.name}.old-{secrets.token_hex(4)}"
    with held(target):
        target.rename(old)
        staging.rename(target)
        sync_directory(target.parent)
        shutil.rmtree(old, ignore_errors=True)
