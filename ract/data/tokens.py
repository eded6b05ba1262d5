"""The token cache: a corpus as numbers on disk, named by its content, read through memory maps.

Each split is one stream, ``S document S document S … document S`` with S the separator: it begins with one, so that
every token of every document has something before it and is predicted in training and in evaluation.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ract.data.corpus import SPLITS, CorpusSpec, identity
from ract.data.tokenizer import TextEncoder, copy_tokenizer, tokenizer_hashes, train_tokenizer
from ract.errors import BadInput, disk_errors
from ract.locks import held

Progress = Callable[[str, int, int], None]
TOKENIZER_SAMPLE_BYTES = 64 << 20
_FORMAT = 1
_RECORD = "corpus.json"
_BATCH_BYTES = 1 << 18


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus in the folder *path*; *digest* (SHA-256) names what went into it.

    Per split: *tokens*, a memory map of uint16 (uint32 above 65,536 entries of vocabulary); *bytes*, the UTF-8 bytes of
    its documents; *documents*, their number. *tokenizer_dir* opens with ``AutoTokenizer``; *vocab_size* is what its
    numbers need, *separator* the token between documents.
    """

    path: Path
    digest: str
    vocab_size: int
    separator: int
    tokens: Mapping[str, npt.NDArray[Any]]
    bytes: dict[str, int]
    documents: dict[str, int]
    sources: dict[str, list[str]]

    @property
    def tokenizer_dir(self) -> Path:
        """The folder with ``tokenizer.json``."""
        return self.path / "tokenizer"

    @cached_property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """How many bytes of text each token stands for, shape ``(vocab_size,)``."""
        return TextEncoder(self.tokenizer_dir).token_bytes()

    def require_block(self, block_size: int) -> None:
        """Raise BadInput, naming the sources, when the training or the validation split has no whole block."""
        for split in ("train", "valid"):
            have, needed = len(self.tokens[split]), block_size + 1
            if have < needed and self.sources[split]:
                names = self.sources[split]
                listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                raise BadInput(
                    f"{listed}: the {split} split has {have} tokens, and one block of {block_size} needs {needed}",
                    "Add text, choose a smaller block, cut finer documents, or give this split its own file",
                )


def prepare(
    spec: CorpusSpec,
    cache_dir: Path,
    *,
    vocab_size: int = 4096,
    tokenizer: Path | None = None,
    block_size: int = 256,
    progress: Progress | None = None,
) -> Corpus:
    """Read, split, tokenize and store the text of *spec* below *cache_dir*, or open what is there already.

    A tokenizer of *vocab_size* is trained on a sample of the training split, or taken from the model directory
    *tokenizer*. Memory does not grow with the text. A second process that wants the same corpus waits for the first;
    work that was cut short is done again. *progress* gets ("train tokenizer" | "tokenize", bytes done, bytes in all).

    Raises BadInput as :func:`ract.data.corpus.documents` does, when a split has no whole block of *block_size* tokens,
    or when the disk is full.
    """
    report = progress or (lambda what, done, total: None)
    digest = _digest(spec, vocab_size, tokenizer)
    folder = cache_dir / f"corpus-{digest[:16]}"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder):
            if not _complete(folder):
                if tokenizer is None:
                    train_tokenizer(_sample(spec, report), vocab_size, folder / "tokenizer")
                else:
                    copy_tokenizer(tokenizer, folder / "tokenizer")
                _encode(spec, folder, digest, report)
    corpus = replace(open_corpus(folder), sources=spec.split_sources())  # the same text may have moved since
    corpus.require_block(block_size)
    return corpus


def open_corpus(folder: Path) -> Corpus:
    """The prepared corpus in *folder* (a worker process opens it by path); BadInput when it is absent or cut short."""
    if not _complete(folder):
        raise BadInput(f"{folder} holds no prepared corpus", "Run the same command again: it is made anew")
    record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    tokens = {s: np.memmap(_stream_file(folder, s), dtype=record["dtype"], mode="r") for s in SPLITS}
    return Corpus(
        path=folder,
        tokens=tokens,
        **{k: record[k] for k in ("digest", "vocab_size", "separator", "bytes", "documents")},
        sources=record["sources"],
    )


def _encode(spec: CorpusSpec, folder: Path, digest: str, report: Progress) -> None:
    encoder = TextEncoder(folder / "tokenizer")
    dtype = "uint16" if encoder.vocab_size <= 1 << 16 else "uint32"
    with ExitStack() as stack:
        streams = {
            split: _Stream(stack.enter_context(_stream_file(folder, split).open("wb")), encoder, np.dtype(dtype))
            for split in SPLITS
        }
        done, total = 0, spec.size_bytes() or 0
        for split, text in spec.documents():
            done += streams[split].add(text)
            report("tokenize", done, max(done, total))
        for stream in streams.values():
            stream.finish()
    record = {
        "format": _FORMAT,
        "digest": digest,
        "dtype": dtype,
        "vocab_size": encoder.vocab_size,
        "separator": encoder.separator,
        "tokens": {split: stream.tokens for split, stream in streams.items()},
        "bytes": {split: stream.bytes for split, stream in streams.items()},
        "documents": {split: stream.documents for split, stream in streams.items()},
        "sources": spec.split_sources(),
    }
    aside = folder / f".{_RECORD}"
    aside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    aside.replace(folder / _RECORD)  # the record comes last: with it, the corpus is complete


class _Stream:
    """One split being written: documents are encoded in small batches and appended."""

    def __init__(self, file: BinaryIO, encoder: TextEncoder, dtype: np.dtype[Any]) -> None:
        self._file, self._encoder, self._dtype = file, encoder, dtype
        self._pending: list[str] = []
        self._pending_bytes = 0
        self.bytes = self.documents = self.tokens = 0
        self._write([encoder.separator])

    def add(self, text: str) -> int:
        size = len(text.encode("utf-8"))
        self._pending.append(text)
        self._pending_bytes += size
        self.bytes += size
        self.documents += 1
        if self._pending_bytes >= _BATCH_BYTES:
            self._flush()
        return size

    def finish(self) -> None:
        self._flush()
        self._file.flush()
        os.fsync(self._file.fileno())

    def _flush(self) -> None:
        for numbers in self._encoder.encode(self._pending):
            self._write([*numbers, self._encoder.separator])
        self._pending.clear()
        self._pending_bytes = 0

    def _write(self, numbers: list[int]) -> None:
        self._file.write(np.array(numbers, dtype=self._dtype).tobytes())
        self.tokens += len(numbers)


def _sample(spec: CorpusSpec, report: Progress) -> Iterator[str]:
    """Training documents for the tokenizer: all, or where there are more than 64 MiB, a share chosen by hash."""
    total = spec.size_bytes()
    share = min(1.0, TOKENIZER_SAMPLE_BYTES / total) if total else 1.0
    threshold = int(share * (1 << 64))
    taken = 0
    for text in spec.training_documents():
        # The first eight bytes of the hash chose the split; these are independent of them.
        if int.from_bytes(identity(text)[8:16], "big") < threshold:
            taken += len(text.encode("utf-8"))
            report("train tokenizer", taken, TOKENIZER_SAMPLE_BYTES if share < 1 else max(total or 0, taken))
            yield text
            if taken >= TOKENIZER_SAMPLE_BYTES:
                return


def _digest(spec: CorpusSpec, vocab_size: int, tokenizer: Path | None) -> str:
    parts: dict[str, object] = {"format": _FORMAT, **spec.identity()}
    if tokenizer is None:
        parts["vocab_size"] = vocab_size
    else:
        parts["tokenizer"] = tokenizer_hashes(tokenizer)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _complete(folder: Path) -> bool:
    """Whether the record is there and the streams have the sizes it says."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        width = np.dtype(record["dtype"]).itemsize
        return record["format"] == _FORMAT and all(
            _stream_file(folder, split).stat().st_size == record["tokens"][split] * width for split in SPLITS
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _stream_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.bin"
