"""Examples read once and written as arrays: each in its split, tokenized, with its class or translation and domain."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ract.data.corpus import SPLITS, documents, split_of
from ract.data.rows import labelled, pairs
from ract.data.tokenizer import TextEncoder, load_tokenizer, target_tokenizer
from ract.errors import BadInput

if TYPE_CHECKING:
    from ract.data.examples import ExampleSpec

Progress = Callable[[str, int, int], None]
RECORD = "examples.json"
_FORMAT = 1
_AT_ONCE = 1024


@dataclass(frozen=True)
class _Example:
    where: str
    split: str
    domain: str
    text: str
    answer: str  # the class's name or the translation


def texts_of(spec: ExampleSpec, report: Progress) -> Iterator[str]:
    """The texts that a tokenizer is trained on: those of the train split, translations too, and the unlabelled ones."""
    for number, example in enumerate(_examples(spec)):
        if example.split == "train":
            if number % _AT_ONCE == 0:
                report("train tokenizer", number, 0)
            yield example.text
            if spec.task == "translation":
                yield example.answer
    yield from documents(spec.unlabelled)


def encode(spec: ExampleSpec, folder: Path, digest: str, report: Progress) -> None:
    """Tokenize the examples of *spec* with the tokenizer in *folder* and write everything there, the record last.

    Raises BadInput for what the examples lack: a class, a second class, an example in train or valid.
    """
    labels = _labels(spec) if spec.task == "classification" else ()
    writer = _Writer(spec, folder, labels)
    with ExitStack() as stack:
        writer.open(stack)
        done = 0
        examples = _examples(spec, writer.skipped)
        while some := tuple(islice(examples, _AT_ONCE)):
            writer.add(some)
            done += len(some)
            report("tokenize", done, 0)
        for split in ("train", "valid"):
            if not writer.count[split]:
                raise BadInput(
                    f"the {split} split has no example", "Give more data, a larger fraction, or a source for this split"
                )
        for text in documents(spec.unlabelled):
            writer.add_text(text)
    writer.close(digest)


def is_complete(folder: Path) -> bool:
    """Whether the record is there and every array has the size it says."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return record["format"] == _FORMAT and all(
            (folder / name).stat().st_size == size for name, size in record["sizes"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_array(folder: Path, split: str, name: str, dtype: str) -> npt.NDArray[Any]:
    """One array of a split, mapped into memory; an empty one where nothing was written."""
    file = folder / f"{split}.{name}.bin"
    if not file.is_file() or file.stat().st_size == 0:
        return np.zeros(1 if name.endswith("offsets") else 0, dtype=dtype)
    return np.memmap(file, dtype=dtype, mode="r")


def _examples(spec: ExampleSpec, skipped: Counter[str] | None = None) -> Iterator[_Example]:
    """Every example with a text (and a translation), the splits of each source in order."""
    for domain, sources in spec.parts:
        for split in SPLITS:
            if not sources.get(split):
                continue
            if spec.task == "classification":
                rows = labelled(sources[split], spec.text_field, spec.label_field)
            else:
                rows = pairs(sources[split], spec.source_field, spec.target_field)
            valid = 0.0 if sources.get("valid") else spec.valid_fraction
            test = 0.0 if sources.get("test") else spec.test_fraction
            for where, text, answer in rows:
                into = split_of(text, valid=valid, test=test) if split == "train" else split
                if text.strip() and answer.strip():
                    yield _Example(where, into, domain, text.strip(), spec.label_names.get(answer, answer.strip()))
                elif skipped is not None:
                    skipped[into] += 1


def _labels(spec: ExampleSpec) -> tuple[str, ...]:
    """The names of the classes, in the order of their numbers where they are numbers. Checks every split for them."""
    seen: dict[str, set[str]] = {split: set() for split in SPLITS}
    first: dict[str, str] = {}
    for example in _examples(spec):
        seen[example.split].add(example.answer)
        if example.split != "train":
            first.setdefault(example.answer, example.where)
    names = seen["train"]
    if len(names) < 2:
        which = f'only the class "{next(iter(names))}"' if names else "no example"
        problem = f"the train split has {which}: there is nothing to tell apart"
        raise BadInput(problem, "Give texts of two classes or more")
    unseen = sorted((seen["valid"] | seen["test"]) - names)
    if unseen:
        raise BadInput(
            f'{first[unseen[0]]}: the class "{unseen[0]}" does not occur in the train split',
            f"Known: {', '.join(sorted(names)[:20])}",
        )
    # In the order of the labels in the data, whatever they are called: a label 1 is class 1 of the model.
    given = {called: label for label, called in spec.label_names.items()}
    label_of = {name: given.get(name, name) for name in names}
    if all(label.removeprefix("-").isdecimal() for label in label_of.values()):
        return tuple(sorted(names, key=lambda name: int(label_of[name])))
    return tuple(sorted(names, key=lambda name: label_of[name]))


class _Writer:
    """The open files of all splits."""

    def __init__(self, spec: ExampleSpec, folder: Path, labels: tuple[str, ...]) -> None:
        self.spec, self.folder, self.labels = spec, folder, labels
        self.domains = tuple(domain for domain, _ in spec.parts if domain)
        tokenizer_dir = folder / "tokenizer"
        self.encoder = TextEncoder(tokenizer_dir)  # for the stream; it turns truncation and framing off
        self.framed = load_tokenizer(tokenizer_dir).backend_tokenizer
        self.targets = target_tokenizer(tokenizer_dir) or self.framed
        for framed in (self.framed, self.targets):
            framed.no_padding()
            framed.enable_truncation(max_length=spec.max_tokens)
            framed.encode_special_tokens = True  # a text that spells out [SEP] is text like any other
        self.count, self.truncated = Counter[str](), Counter[str]()
        self.skipped = Counter[str]()
        self.seen: dict[str, list[bytes]] = {split: [] for split in SPLITS}  # hashes of the texts
        self.files: dict[str, BinaryIO] = {}

    def open(self, stack: ExitStack) -> None:
        for split in SPLITS:
            names = ["tokens", "tokens-offsets", "labels", "domains", "targets", "targets-offsets", "stream"]
            for name in names:
                path = self.folder / f"{split}.{name}.bin"
                self.files[path.name] = stack.enter_context(path.open("wb"))
            self.files[f"{split}.jsonl"] = stack.enter_context((self.folder / f"{split}.jsonl").open("wb"))
            for name in ("tokens-offsets", "targets-offsets"):
                self._write(split, name, [0], "int64")
            self._write(split, "stream", [self.encoder.separator], "uint32")
        self.ends = {(split, name): 0 for split in SPLITS for name in ("tokens", "targets")}

    def add(self, some: tuple[_Example, ...]) -> None:
        encodings = self.framed.encode_batch([e.text for e in some])
        pairs = self.spec.task == "translation"
        answers = self.targets.encode_batch([e.answer for e in some]) if pairs else [None] * len(some)
        for example, encoding, answer in zip(some, encodings, answers, strict=True):
            split = example.split
            self.count[split] += 1
            self.truncated[split] += bool(encoding.overflowing or (answer is not None and answer.overflowing))
            self._ragged(split, "tokens", encoding.ids)
            if answer is not None:
                self._ragged(split, "targets", answer.ids)
            if self.labels:
                self._write(split, "labels", [self.labels.index(example.answer)], "int64")
            if self.domains:
                number = self.domains.index(example.domain) if example.domain else len(self.domains)
                self._write(split, "domains", [number], "int64")
            self.seen[split].append(hashlib.sha256(example.text.encode("utf-8")).digest()[:8])
            names = ("text", "label") if self.labels else ("source", "target")
            row = {names[0]: example.text, names[1]: example.answer, "domain": example.domain}
            self.files[f"{split}.jsonl"].write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
        if self.labels:
            for split in ("train", "valid"):
                for numbers in self.encoder.encode([e.text for e in some if e.split == split]):
                    self._write(split, "stream", [*numbers, self.encoder.separator], "uint32")

    def add_text(self, text: str) -> None:
        for numbers in self.encoder.encode([text]):
            self._write("train", "stream", [*numbers, self.encoder.separator], "uint32")

    def close(self, digest: str) -> None:
        from ract.data.examples import pad_token_of

        in_train = set(self.seen["train"])
        overlap = {split: sum(text in in_train for text in self.seen[split]) for split in ("valid", "test")}
        for name in self.files:
            with (self.folder / name).open("rb") as file:
                os.fsync(file.fileno())
        record = {
            "format": _FORMAT,
            "digest": digest,
            "task": self.spec.task,
            "vocab_size": self.encoder.vocab_size,
            "max_tokens": self.spec.max_tokens,
            "separator": self.encoder.separator,
            "pad_token_id": pad_token_of(self.folder / "tokenizer"),
            "labels": self.labels,
            "domains": self.domains,
            "count": {split: self.count[split] for split in SPLITS},
            "truncated": {split: self.truncated[split] for split in SPLITS},
            "skipped": {split: self.skipped[split] for split in SPLITS},
            "overlap": {"train": 0, **overlap},
            "sizes": {name: (self.folder / name).stat().st_size for name in self.files},
        }
        aside = self.folder / f".{RECORD}"
        aside.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.replace(self.folder / RECORD)

    def _ragged(self, split: str, name: str, numbers: list[int]) -> None:
        self._write(split, name, numbers, "uint32")
        self.ends[split, name] += len(numbers)
        self._write(split, f"{name}-offsets", [self.ends[split, name]], "int64")

    def _write(self, split: str, name: str, numbers: list[int], dtype: str) -> None:
        self.files[f"{split}.{name}.bin"].write(np.array(numbers, dtype=dtype).tobytes())
