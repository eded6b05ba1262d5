"""What the user names as data, as files or rows: paths, globs, folders, JSONL, ``hf:`` data sets, ``stdlib``."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ract.errors import BadInput, needs_extra

STDLIB = "stdlib"
HUB = "hf:"
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
_PROSE = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".htm", ".xml", ".log", ".srt")
_CODE = (
    *(".py", ".pyi", ".ipynb", ".js", ".jsx", ".ts", ".tsx", ".css", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".java"),
    *(".kt", ".go", ".rs", ".rb", ".php", ".swift", ".scala", ".lua", ".r", ".jl", ".pl", ".sh", ".bash", ".sql"),
)
_DATA = (".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".csv", ".tsv")
TEXT_SUFFIXES = JSONL_SUFFIXES.union(_PROSE, _CODE, _DATA)
_LOCAL_FORMATS = frozenset({"json", "text", "csv", "parquet", "arrow"})
_STDLIB_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data"}
)


@dataclass(frozen=True)
class TextFile:
    """One file of a source. What cannot be decoded in a *lenient* one is left out."""

    path: Path
    lenient: bool = False

    @property
    def is_jsonl(self) -> bool:
        """Whether each line is a JSON object that holds one document."""
        return self.path.suffix.lower() in JSONL_SUFFIXES


@dataclass(frozen=True)
class HubDataset:
    """``hf:NAME[@CONFIG][:SPLIT]``, a data set of ``datasets``; NAME is on the hub, a local folder, or a file format.

    With a format (json, text, csv, parquet, arrow) the rest is a path or glob: ``hf:json:/data/*.jsonl``.
    """

    source: str
    name: str
    config: str | None
    split: str
    files: tuple[Path, ...]

    def rows(self, field: str) -> Iterator[str]:
        """The text in *field* of every row, streamed. Raises BadInput when the set or the field is not there."""
        return (text_of(row, field, self.source) for row in self.records())

    def records(self) -> Iterator[dict[str, Any]]:
        """Every row, streamed, classes by their names. Raises BadInput when the set is not there."""
        with needs_extra(f"The source {self.source}", "train"):
            import datasets
        with _loadable(self.source):
            arguments = {"data_files": [str(f) for f in self.files]} if self.name in _LOCAL_FORMATS else {}
            rows = datasets.load_dataset(self.name, self.config, split=self.split, streaming=True, **arguments)
            classes = {key: feature for key, feature in (rows.features or {}).items() if hasattr(feature, "int2str")}
            for row in rows:
                named = {k: f.int2str(row[k]) for k, f in classes.items() if isinstance(row[k], int) and row[k] >= 0}
                yield {**row, **named}

    def fingerprint(self) -> str:
        """Names the content: hashes of local files, or the data set's own hash (it includes the hub's revision)."""
        if self.files:
            return _digest([_file_hash(path) for path in self.files] + [self.name, self.config or "", self.split])
        with needs_extra(f"The source {self.source}", "train"):
            import datasets
        with _loadable(self.source):
            builder = datasets.load_dataset_builder(self.name, self.config)
            return _digest([str(builder.repo_id), builder.hash, builder.config_id, self.split])


Source = TextFile | HubDataset


@dataclass
class Meter:
    """How many *bytes* of its files a reader has come through."""

    bytes: float = 0


def resolve(source: str) -> Iterator[Source]:
    """The files or the data set that *source* names, in a fixed order; one by one, since there may be many.

    Raises BadInput: nothing there, a glob without a match, a folder without text files, a path that may not be read.
    """
    path = Path(source).expanduser()
    with readable(source):
        if source == STDLIB:
            yield from _standard_library()
        elif source.startswith(HUB):
            yield _hub_dataset(source)
        elif path.is_dir():
            yield from _folder(path)
        elif path.is_file():
            yield TextFile(path)
        elif glob.has_magic(source):
            yield from _matches(source)
        else:
            raise BadInput(f"{source} does not exist", 'Give a text file, a folder, a glob, "hf:NAME" or "stdlib"')


def fingerprint(sources: Sequence[str]) -> str:
    """SHA-256 that names what the files hold, with their kinds and order, wherever they lie."""
    return _digest(
        item.fingerprint() if isinstance(item, HubDataset) else f"{item.path.suffix.lower()}:{_file_hash(item.path)}"
        for source in sources
        for item in resolve(source)
    )


def size_bytes(sources: Sequence[str]) -> int | None:
    """Bytes of all files behind *sources*, or None where a data set's size cannot be seen beforehand."""
    total = 0
    for item in (item for source in sources for item in resolve(source)):
        if isinstance(item, HubDataset) and not item.files:
            return None
        total += sum(path.stat().st_size for path in (item.files if isinstance(item, HubDataset) else (item.path,)))
    return total


def jsonl_rows(path: Path, meter: Meter | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(line number from 1, object)`` for every line of a JSONL file that is not blank; BadInput names the line."""
    offset = 0
    with readable(str(path)), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8").removeprefix("\ufeff" if number == 1 else "")
                row = json.loads(text) if text.strip() else None
            except UnicodeDecodeError as error:
                raise not_utf8(path, offset + error.start) from error
            except (json.JSONDecodeError, RecursionError) as error:
                raise BadInput(
                    f"{path} line {number} is not valid JSON ({error})", "Write one JSON object a line"
                ) from error
            if meter is not None:
                meter.bytes += len(line)
            if row is not None:
                if not isinstance(row, dict):
                    raise BadInput(f"{path} line {number} holds no JSON object", 'Write lines like {"text": "…"}')
                yield number, row
            offset += len(line)


def text_of(row: dict[str, Any], field: str, where: str) -> str:
    """The string in *field* of *row*; BadInput naming *where* and the fields there are."""
    value = row.get(field)
    if not isinstance(value, str):
        raise BadInput(
            f'{where} has no text in the field "{field}"', f"Name one of its fields: {', '.join(map(str, row))}"
        )
    return whole(value, field, where)


def whole(text: str, field: str, where: str) -> str:
    """*text*, or BadInput when it cannot be written: JSON can spell half of a pair, "\\ud83d" alone, no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f'{where} has half a character ({text[error.start]!a}) in the field "{field}"',
            "Write the text again from its source",
        ) from error
    return text


def not_utf8(path: Path, offset: int) -> BadInput:
    """The error for bytes that are not UTF-8."""
    return BadInput(
        f"{path} is not UTF-8: byte {offset} cannot be decoded",
        f"Convert it, for example: iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}",
    )


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Turn the operating system's errors in reading *source* into BadInput."""
    try:
        yield
    except PermissionError as error:
        where = error.filename or source
        raise BadInput(f"{where} cannot be read: permission denied", "Change its permissions") from error
    except OSError as error:
        raise BadInput(f"{source} cannot be read: {error.strerror or error}", "Copy it again") from error


@contextmanager
def _loadable(source: str) -> Iterator[None]:
    """Turn what ``datasets`` raises for an absent set, configuration, split or connection into BadInput."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{source} cannot be loaded: {reason}", "Check its name, split and the connection") from error


def _hub_dataset(source: str) -> HubDataset:
    head, _, tail = source.removeprefix(HUB).partition(":")
    if not head:
        raise BadInput(f"{source} names no data set", 'Write "hf:NAME", "hf:NAME:SPLIT" or "hf:json:PATH"')
    if head in _LOCAL_FORMATS:
        files = tuple(item.path for item in (_matches(tail) if glob.has_magic(tail) else [TextFile(Path(tail))]))
        for file in files:
            if not file.is_file():
                raise BadInput(f"{file} (in {source}) does not exist", "Give the path of a file, or a glob")
        return HubDataset(source, head, None, "train", files)
    name, _, config = head.partition("@")
    files = tuple(sorted(f for f in Path(name).rglob("*") if f.is_file())) if Path(name).is_dir() else ()
    return HubDataset(source, name, config or None, tail or "train", files)


def _standard_library() -> list[TextFile]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in root.rglob("*.py") if not _STDLIB_EXCLUDED.intersection(f.relative_to(root).parts)]
    if not files:
        raise BadInput(f"this Python keeps no source files in {root}", "Give a folder of text instead of stdlib")
    return [TextFile(path, lenient=True) for path in sorted(files)]


def _folder(folder: Path) -> Iterator[TextFile]:
    def unreadable(error: OSError) -> None:
        raise error

    some = False
    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in TEXT_SUFFIXES:
                some = True
                yield TextFile(Path(root, name))
    if not some:
        raise BadInput(f"{folder} holds no text files", f"Known endings are {', '.join(sorted(TEXT_SUFFIXES)[:8])}, …")


def _matches(pattern: str) -> Iterator[TextFile]:
    found = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))  # noqa: PTH207 (Path takes no absolute one)
    some = False
    for path in map(Path, found):
        if path.is_file():
            some = True
            yield TextFile(path)
    if not some:
        raise BadInput(f"{pattern} matches no file", "Check the pattern; ** reaches into folders")


def _file_hash(path: Path) -> str:
    with readable(str(path)), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(parts: Iterable[str]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() + b"\n")
    return total.hexdigest()
