"""How many tokens a plan's data comes to, before anything is tokenized."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from ract.data.rows import labelled, pairs, read_together
from ract.data.sources import Meter, size_bytes
from ract.errors import MissingExtra
from ract.plan.graph import DataSize
from ract.plan.schema import Plan
from ract.plan.tables import DataTable

# Text bytes per token of a byte-level BPE, by vocabulary: measured on English, code and Chinese, rounded down.
_BYTES_PER_TOKEN = {512: 2.0, 1024: 2.4, 2048: 2.9, 4096: 3.3, 8192: 3.7, 16384: 4.0}
_ROWS = 10_000  # of every source are read
_SPECIAL_TOKENS = {"classification": 2, "translation": 1}  # beside those of a text


def estimated_size(plan: Plan, vocab_size: int) -> DataSize:
    """The tokens of the train split (0 where a data set does not say its size).

    For a language model they follow from the size of the files, for texts with labels or translations from the first
    rows of every source: how long they are, what ``max_tokens`` leaves of them, and how much of a file is text. Two
    classes are assumed where there are any: more of them cost next to nothing. Raises BadInput: see
    :mod:`ract.data.rows`.
    """
    data = plan.data
    per_token = _BYTES_PER_TOKEN[min(_BYTES_PER_TOKEN, key=lambda v: abs(v - vocab_size))]

    def tokens(sources: Sequence[str], valid: Sequence[str], test: Sequence[str]) -> int:
        held_out = (0.0 if valid else data.valid_fraction) + (0.0 if test else data.test_fraction)
        return int(_tokens(data, sources, per_token) * (1 - held_out))

    domains = {name: tokens(d.train, d.valid, d.test) for name, d in data.domains.items()}
    train = tokens(data.train, data.valid, data.test) + sum(domains.values())
    unlabelled = int((size_bytes(data.unlabelled) or 0) / per_token)
    return DataSize(train, domains, train + unlabelled, labels=2 if data.task == "classification" else 0)


def _tokens(data: DataTable, sources: Sequence[str], per_token: float) -> float:
    if data.task == "language-modeling":
        return (size_bytes(sources) or 0) / per_token
    together = read_together(sources) if data.task == "translation" else ((source,) for source in sources)
    return sum(_tokens_of_rows(data, unit, per_token) for unit in together)


def _tokens_of_rows(data: DataTable, sources: Sequence[str], per_token: float) -> float:
    total, meter, found = size_bytes(sources) or 0, Meter(), 0.0
    try:
        for texts in itertools.islice(_texts(data, sources, meter), _ROWS):
            for text in texts:
                length = len(text.encode()) / per_token + _SPECIAL_TOKENS[data.task]
                found += min(length, data.max_tokens) if text else 0
    except MissingExtra:  # what reads Parquet and data sets is needed to build, not to check
        return total / per_token
    return found / meter.bytes * total if meter.bytes else total / per_token


def _texts(data: DataTable, sources: Sequence[str], meter: Meter) -> Iterator[tuple[str, ...]]:
    """What is tokenized of every row."""
    if data.task == "classification":
        return ((text.strip(),) for _, text, _ in labelled(sources, data.text_field, data.label_field, meter))
    rows = pairs(sources, data.source_field, data.target_field, meter)
    return ((source.strip(), target.strip()) for _, source, target in rows)
