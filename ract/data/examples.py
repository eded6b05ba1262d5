"""Labelled texts or pairs of sentences as numbers on disk, named by their content, read through memory maps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ract.data.batches import permute
from ract.data.corpus import SPLITS
from ract.data.example_writer import RECORD, encode, is_complete, read_array, texts_of
from ract.data.sources import fingerprint
from ract.data.tokenizer import copy_tokenizer, load_tokenizer, put_prefix, tokenizer_hashes, train_tokenizer
from ract.errors import BadInput, disk_errors
from ract.locks import held

Progress = Callable[[str, int, int], None]
_FORMAT = 1
KIND = {"classification": "encoder", "translation": "encoder-decoder"}


@dataclass(frozen=True)
class ExampleSpec:
    """Which examples, in which fields, and how they are split.

    *task* is "classification" or "translation"; sources are those of :mod:`ract.data.rows`. *domains* maps a name to
    sources of its own for each split. Where a split has no source, a share of *train* is it, by the hash of the text.
    *label_names* renames classes. A text is cut after *max_tokens* tokens, special ones counted. *unlabelled* is more
    plain text, for the tokenizer and for masked-language-model training. *prefix* stands before every source.
    """

    task: str
    train: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    domains: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    text_field: str = "text"
    label_field: str = "label"
    source_field: str = "source"
    target_field: str = "target"
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    max_tokens: int = 256
    unlabelled: tuple[str, ...] = ()
    lowercase: bool = False
    label_names: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""

    @property
    def parts(self) -> list[tuple[str, Mapping[str, tuple[str, ...]]]]:
        """``(domain, sources of each split)``; the domain of the plain sources is ""."""
        plain = {"train": self.train, "valid": self.valid, "test": self.test}
        return [*([("", plain)] if self.train else []), *self.domains.items()]

    def identity(self) -> dict[str, object]:
        """What names the prepared data: the settings, with the sources replaced by what they hold."""
        hashes = {name: {split: fingerprint(sources) for split, sources in part.items()} for name, part in self.parts}
        apart = ("train", "valid", "test", "domains", "unlabelled", *(() if self.prefix else ("prefix",)))
        plain = {k: v for k, v in asdict(self).items() if k not in apart}
        return plain | {"sources": hashes, "unlabelled": fingerprint(self.unlabelled)}


@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths: number *i* is ``flat[offsets[i]:offsets[i + 1]]``."""

    flat: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The length of every sequence."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Examples:
    """Prepared examples in the folder *path*; *digest* (SHA-256) names what went into them.

    Per split: *tokens* (the text or source, framed as the model reads it), for translation *targets*, for
    classification *label_ids* into *labels*; *domain_ids* into *domains* (as many as there are domains: none).
    *truncated*, *skipped* (blank) and *overlap* (texts that also stand in train) are counts of examples. *stream* is a
    token stream of the texts and of the unlabelled text, for masked-language-model training.
    """

    path: Path
    digest: str
    task: str
    vocab_size: int
    max_tokens: int
    separator: int
    pad_token_id: int
    labels: tuple[str, ...]
    domains: tuple[str, ...]
    truncated: dict[str, int]
    skipped: dict[str, int]
    overlap: dict[str, int]

    @property
    def tokenizer_dir(self) -> Path:
        """The folder with ``tokenizer.json``."""
        return self.path / "tokenizer"

    @cached_property
    def tokens(self) -> dict[str, Ragged]:
        """The texts or sources of each split."""
        return {split: self._ragged(split, "tokens") for split in SPLITS}

    @cached_property
    def targets(self) -> dict[str, Ragged]:
        """The translations of each split."""
        return {split: self._ragged(split, "targets") for split in SPLITS}

    @cached_property
    def label_ids(self) -> dict[str, npt.NDArray[np.int64]]:
        """The class of every text of each split."""
        return {split: read_array(self.path, split, "labels", "int64") for split in SPLITS}

    @cached_property
    def domain_ids(self) -> dict[str, npt.NDArray[np.int64]]:
        """The domain of every example of each split."""
        return {split: read_array(self.path, split, "domains", "int64") for split in SPLITS}

    @cached_property
    def stream(self) -> dict[str, npt.NDArray[Any]]:
        """Token streams of the train and valid texts, separated as in a corpus."""
        return {split: read_array(self.path, split, "stream", "uint32") for split in ("train", "valid")}

    @cached_property
    def _rows(self) -> dict[str, list[dict[str, str]]]:
        return {}

    def count(self, split: str) -> int:
        """How many examples *split* has."""
        return len(self.tokens[split])

    def lengths(self, split: str) -> npt.NDArray[np.int64]:
        """Tokens of every example: of the text, or of source and target together."""
        own = self.tokens[split].lengths
        return own + self.targets[split].lengths if self.task == "translation" else own

    def tokens_in(self, split: str, domain: str = "") -> int:
        """Tokens of *split*, or of one *domain* in it."""
        lengths = self.lengths(split)
        return int(lengths.sum() if not domain else lengths[self.domain_ids[split] == self.domains.index(domain)].sum())

    def rows(self, split: str) -> list[dict[str, str]]:
        """The examples of *split* as they were read: text and label, or source and target; and the domain."""
        if split not in self._rows:
            with (self.path / f"{split}.jsonl").open(encoding="utf-8") as file:
                self._rows[split] = [json.loads(line) for line in file]
        return self._rows[split]

    def sample(self, split: str, limit: int) -> list[dict[str, str]]:
        """At most *limit* of the rows of *split*, from all over it, in a fixed order; all where there are fewer."""
        rows = self.rows(split)
        if len(rows) <= limit:
            return rows
        chosen = permute(np.arange(limit, dtype=np.int64), len(rows), key=(0,))
        return [rows[i] for i in sorted(chosen.tolist())]

    def _ragged(self, split: str, name: str) -> Ragged:
        return Ragged(
            read_array(self.path, split, name, "uint32"), read_array(self.path, split, f"{name}-offsets", "int64")
        )


def prepare_examples(
    spec: ExampleSpec,
    cache_dir: Path,
    *,
    vocab_size: int = 4096,
    tokenizer: Path | None = None,
    progress: Progress | None = None,
) -> Examples:
    """Read, split, tokenize and store the examples of *spec* below *cache_dir*, or open what is there already.

    A tokenizer of *vocab_size* is trained on the train split and the unlabelled text, or taken from the model directory
    *tokenizer*. A second process that wants the same examples waits for the first; work that was cut short is done
    again. *progress* gets ("train tokenizer" | "tokenize", examples done, 0 for unknown).

    Raises BadInput as :func:`ract.data.rows.labelled` and :func:`~ract.data.rows.pairs` do, for a class that train does
    not have, for one class only, and for a split without an example.
    """
    report = progress or (lambda what, done, total: None)
    digest = _digest(spec, vocab_size, tokenizer)
    folder = cache_dir / f"examples-{digest[:16]}"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder):
            if not is_complete(folder):
                if tokenizer is None:
                    train_tokenizer(
                        texts_of(spec, report),
                        vocab_size,
                        folder / "tokenizer",
                        KIND[spec.task],
                        lowercase=spec.lowercase,
                        max_tokens=spec.max_tokens,
                    )
                else:
                    copy_tokenizer(tokenizer, folder / "tokenizer")
                    if spec.prefix:
                        put_prefix(folder / "tokenizer", spec.prefix)
                encode(spec, folder, digest, report)
    return open_examples(folder)


def open_examples(folder: Path) -> Examples:
    """The prepared examples in *folder*; BadInput when they are absent or cut short."""
    if not is_complete(folder):
        raise BadInput(f"{folder} holds no prepared examples", "Run the same command again: they are made anew")
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    counts = {key: record[key] for key in ("truncated", "skipped", "overlap")}
    plain = {key: record[key] for key in ("digest", "task", "vocab_size", "max_tokens", "separator", "pad_token_id")}
    return Examples(path=folder, labels=tuple(record["labels"]), domains=tuple(record["domains"]), **counts, **plain)


def pad_token_of(folder: Path) -> int:
    """The padding token of the tokenizer in *folder*; BadInput when it has none."""
    number = load_tokenizer(folder).pad_token_id
    if number is None:
        raise BadInput(f"the tokenizer in {folder} has no padding token", "Set its pad_token")
    return int(number)


def _digest(spec: ExampleSpec, vocab_size: int, tokenizer: Path | None) -> str:
    parts: dict[str, object] = {"format": _FORMAT, **spec.identity()}
    if tokenizer is None:
        parts["vocab_size"] = vocab_size
    else:
        parts["tokenizer"] = tokenizer_hashes(tokenizer)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
