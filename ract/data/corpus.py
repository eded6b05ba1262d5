"""From sources to documents, streamed; and which split each document belongs to, by its own content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from ract.data.sources import (
    HubDataset,
    TextFile,
    fingerprint,
    jsonl_rows,
    not_utf8,
    readable,
    resolve,
    size_bytes,
    text_of,
)
from ract.errors import BadInput

__all__ = ["SPLITS", "CorpusSpec", "Document", "documents", "fingerprint", "identity", "size_bytes", "split_of"]

Document = Literal["auto", "file", "paragraph", "line"]
SPLITS = ("train", "valid", "test")

_PROSE_SUFFIXES = frozenset({".txt", ".text", ".md", ".markdown"})
_JOIN_BYTES = 2048  # short paragraphs are joined to about this many bytes, so that a document is worth a window
_LINES_BYTES = 4 * _JOIN_BYTES  # text without blank lines is cut at a line's end after this many
_LINE_LIMIT = 1 << 16  # a longer line is cut between characters: one without an end must not fill the memory
_DOCUMENT_LIMIT = 1 << 20  # nor may a file
_BUCKETS = 10_000


@dataclass(frozen=True)
class CorpusSpec:
    """Which text, how it is cut into documents, and how they are split.

    Sources: see :func:`documents`. *valid* and *test*, where given, are those splits; else a share of the documents of
    *train*, chosen by hash (:func:`split_of`). *document*: what one document is; *field*: where JSONL rows keep text.
    """

    train: tuple[str, ...]
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    document: Document = "auto"
    field: str = "text"

    def __post_init__(self) -> None:
        if not self.train:
            raise BadInput("the data has no training source", 'Name at least one, for example train = ["stdlib"]')
        if min(self.valid_fraction, self.test_fraction) < 0 or self.valid_fraction + self.test_fraction >= 1:
            raise BadInput(
                f"the fractions valid={self.valid_fraction} and test={self.test_fraction} leave nothing to train on",
                "Both are at least 0 and their sum is below 1",
            )

    def documents(self) -> Iterator[tuple[str, str]]:
        """``(split, text)`` for every document, in a fixed order."""
        valid, test = self._fractions()
        for text in documents(self.train, document=self.document, field=self.field):
            yield split_of(text, valid=valid, test=test), text
        for split, sources in (("valid", self.valid), ("test", self.test)):
            for text in documents(sources, document=self.document, field=self.field):
                yield split, text

    def training_documents(self) -> Iterator[str]:
        """The documents of the training split."""
        valid, test = self._fractions()
        for text in documents(self.train, document=self.document, field=self.field):
            if split_of(text, valid=valid, test=test) == "train":
                yield text

    def size_bytes(self) -> int | None:
        """Bytes of all sources, or None where that cannot be known without reading them."""
        return size_bytes((*self.train, *self.valid, *self.test))

    def identity(self) -> dict[str, object]:
        """What names the prepared data: the settings, with the sources replaced by what they hold."""
        given = {"train": self.train, "valid": self.valid, "test": self.test}
        return asdict(self) | {split: fingerprint(sources) for split, sources in given.items()}

    def split_sources(self) -> dict[str, list[str]]:
        """The sources whose text is in each split; none where nothing was asked for."""
        valid, test = self._fractions()
        return {
            "train": list(self.train),
            "valid": list(self.train if valid else self.valid),
            "test": list(self.train if test else self.test),
        }

    def _fractions(self) -> tuple[float, float]:
        return 0.0 if self.valid else self.valid_fraction, 0.0 if self.test else self.test_fraction


def documents(sources: Sequence[str], *, document: Document = "auto", field: str = "text") -> Iterator[str]:
    """The documents of *sources* in a fixed order, read piece by piece: memory does not grow with the files.

    A source is a text file, a glob, a folder (text-like files below it, hidden ones left out), a ``.jsonl`` file (a row
    is a document, its text in *field*), ``"hf:NAME[@CONFIG][:SPLIT]"``, ``"hf:json:PATH"`` (likewise text, csv,
    parquet), or ``"stdlib"``: the running Python's own standard library without its tests.

    *document* says what one is in other files: a whole ``"file"``, a ``"paragraph"`` (ended by a blank line), a
    ``"line"``; ``"auto"`` joins the paragraphs of ``.txt`` and ``.md`` files to at least 2,048 bytes, cuts after 8,192
    where there are no blank lines, and takes other files whole. None is longer than 1 MiB; blank ones are left out.

    Raises BadInput naming the file: absent, empty, not to be read, not UTF-8 (with the byte), no such field.
    """
    if document not in get_args(Document):
        raise BadInput(f'there is no document "{document}"', f"Known: {', '.join(get_args(Document))}")
    for source in sources:
        some = False
        for item in resolve(source):
            for text in _item_documents(item, document, field):
                some = True
                yield text
        if not some:
            raise BadInput(f"{source} holds no text", "Give data that is not empty")


def identity(text: str) -> bytes:
    """SHA-256 of a document: what decides its split."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def split_of(text: str, *, valid: float = 0.05, test: float = 0.05) -> str:
    """ "train", "valid" or "test" by the document's hash modulo 10,000: the same on every machine and in every run.

    Equal documents fall in the same split, so none of the training text is ever measured on.
    """
    bucket = int.from_bytes(identity(text)[:8], "big") % _BUCKETS
    if bucket < round(valid * _BUCKETS):
        return "valid"
    return "test" if bucket < round((valid + test) * _BUCKETS) else "train"


def _item_documents(item: TextFile | HubDataset, document: Document, field: str) -> Iterator[str]:
    if isinstance(item, HubDataset):
        texts = item.rows(field)
    elif item.is_jsonl:
        texts = (text_of(row, field, f"{item.path} line {number}") for number, row in jsonl_rows(item.path))
    else:
        yield from _file_documents(item, document)
        return
    for text in texts:
        for start in range(0, len(text), _DOCUMENT_LIMIT):
            piece = text[start : start + _DOCUMENT_LIMIT]
            if piece.strip():
                yield piece


def _file_documents(item: TextFile, document: Document) -> Iterator[str]:
    ends = _rule(item.path, document)
    with readable(str(item.path)), item.path.open("rb") as file:
        for offset, raw in _grouped(_lines(file), ends):
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                if item.lenient:
                    return
                raise not_utf8(item.path, offset + error.start) from error
            text = text.removeprefix("\ufeff") if offset == 0 else text
            text = text if ends is _end_of_file else text.strip("\r\n")
            if text.strip():
                yield text


Ends = Callable[[int, bytes], bool]


def _rule(path: Path, document: Document) -> Ends:
    if document == "auto":
        return _end_of_prose if path.suffix.lower() in _PROSE_SUFFIXES else _end_of_file
    return {"file": _end_of_file, "paragraph": _end_of_paragraph, "line": _end_of_line}[document]


def _end_of_file(size: int, line: bytes) -> bool:
    return size >= _DOCUMENT_LIMIT


def _end_of_paragraph(size: int, line: bytes) -> bool:
    return not line.strip() or size >= _DOCUMENT_LIMIT


def _end_of_line(size: int, line: bytes) -> bool:
    return True


def _end_of_prose(size: int, line: bytes) -> bool:
    return (size >= _JOIN_BYTES and not line.strip()) or size >= _LINES_BYTES


def _grouped(lines: Iterator[bytes], ends: Ends) -> Iterator[tuple[int, bytes]]:
    """``(offset in the file, bytes)`` of each document: lines up to the one that *ends* it, given the size so far."""
    pending: list[bytes] = []
    offset = size = 0
    for line in lines:
        pending.append(line)
        size += len(line)
        if ends(size, line):
            yield offset, b"".join(pending)
            offset, size = offset + size, 0
            pending.clear()
    if pending:
        yield offset, b"".join(pending)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends; one longer than 64 KiB in pieces that break no character."""
    rest = b""
    while line := rest + file.readline(_LINE_LIMIT - len(rest)):
        whole = len(line)
        if whole == _LINE_LIMIT and not line.endswith(b"\n"):
            whole -= _unfinished(line)
        line, rest = line[:whole], line[whole:]
        yield line


def _unfinished(data: bytes) -> int:
    """How many bytes at the end of *data* are the beginning of a UTF-8 character that goes on."""
    for back in range(1, 4):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if length > back else 0
        if byte < 0x80:
            return 0
    return 0
