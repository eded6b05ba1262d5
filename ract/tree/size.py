"""How many tokens a plan's data comes to, before all of it is tokenized."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from ract.data.rows import labelled, pairs, read_together
from ract.data.sources import HUB, Meter, size_bytes
from ract.data.tokenizer import train_tokenizer
from ract.errors import MissingExtra
from ract.plan.graph import DataSize, Origin
from ract.plan.schema import KIND_OF_TASK, Plan
from ract.plan.tables import DataTable, DomainTable

# Text bytes per token of a byte-level BPE, by vocabulary: measured on English, code and Chinese, rounded down.
_BYTES_PER_TOKEN = {512: 2.0, 1024: 2.4, 2048: 2.9, 4096: 3.3, 8192: 3.7, 16384: 4.0}
_ROWS, _CHARACTERS = 10_000, 500_000  # at most so much of every source is read


@dataclass(frozen=True)
class _Source:
    """Files that are read together: the *texts* of their first rows, and how many *times* as much they hold.

    Without *texts* nothing is known but how many *bytes* there are.
    """

    bytes: float
    texts: list[str] = field(default_factory=list)
    times: float = 0.0


def estimated_size(plan: Plan, origin: Origin | None) -> DataSize:
    """The tokens of the train split (0 where a data set does not say its size).

    For a language model they follow from the size of the files; for texts with labels or translations from the first
    rows of every source, cut after ``max_tokens``, with the tokenizer of *origin*, the checkpoint that the plan starts
    from, or one trained on these rows. Two classes are assumed where there are any: more of them cost next to nothing.
    Raises BadInput: see :mod:`ract.data.rows`.
    """
    data, vocabulary = plan.data, origin.shape.vocab_size if origin else plan.tokenizer.vocab_size
    per_token = _BYTES_PER_TOKEN[min(_BYTES_PER_TOKEN, key=lambda v: abs(v - vocabulary))]
    parts: dict[str, DataTable | DomainTable] = {"": data, **data.domains}
    sources = {name: list(_sources(data, part.train)) for name, part in parts.items()}
    tokenizer = _tokenizer(plan, origin, [text for found in sources.values() for one in found for text in one.texts])

    def tokens(name: str) -> int:
        part = parts[name]
        held_out = (0.0 if part.valid else data.valid_fraction) + (0.0 if part.test else data.test_fraction)
        return int(sum(_tokens(one, tokenizer, data.max_tokens, per_token) for one in sources[name]) * (1 - held_out))

    domains = {name: tokens(name) for name in data.domains}
    train = tokens("") + sum(domains.values())
    unlabelled = int((size_bytes(data.unlabelled) or 0) / per_token)
    return DataSize(train, domains, train + unlabelled, labels=2 if data.task == "classification" else 0)


def _sources(data: DataTable, sources: Sequence[str]) -> Iterator[_Source]:
    together = read_together(sources) if data.task == "translation" else ((source,) for source in sources)
    for unit in together:
        total, meter, texts, characters = size_bytes(unit) or 0, Meter(), list[str](), 0
        try:
            rows = () if data.task == "language-modeling" or unit[0].startswith(HUB) else _rows(data, unit, meter)
            for row, found in enumerate(rows, start=1):
                texts += [text for text in found if text]
                characters += sum(map(len, found))
                if row == _ROWS or characters > _CHARACTERS:
                    break
        except MissingExtra:  # what reads Parquet is needed to build, not to check
            texts = []
        yield _Source(total, texts, total / meter.bytes if meter.bytes else 0.0)


def _rows(data: DataTable, sources: Sequence[str], meter: Meter) -> Iterator[tuple[str, ...]]:
    """What is tokenized of every row."""
    if data.task == "classification":
        return ((text.strip(),) for _, text, _ in labelled(sources, data.text_field, data.label_field, meter))
    rows = pairs(sources, data.source_field, data.target_field, meter)
    return ((source.strip(), target.strip()) for _, source, target in rows)


def _tokenizer(plan: Plan, origin: Origin | None, texts: list[str]) -> Tokenizer | None:
    """What the *texts* are read with, or None: there are none, or the checkpoint has no ``tokenizer.json``."""
    if not texts:
        return None
    if origin is not None:
        file = Path(origin.path) / "tokenizer.json"
        if not file.is_file():
            return None
        tokenizer: Tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    with tempfile.TemporaryDirectory() as folder:
        table = plan.tokenizer
        train_tokenizer(texts, table.vocab_size, Path(folder), KIND_OF_TASK[plan.data.task], lowercase=table.lowercase)
        return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def _tokens(source: _Source, tokenizer: Tokenizer | None, max_tokens: int, per_token: float) -> float:
    if not source.texts or tokenizer is None:
        return source.bytes / per_token
    return source.times * sum(min(len(one.ids), max_tokens) for one in tokenizer.encode_batch(source.texts))
