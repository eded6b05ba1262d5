"""The corpora and settings of ``benchmarks/recipes.py``: which text, how much of it, which shapes, which budget.

*compute*: the single model of the final size reads less than half of the text once. *data*: a subset so small that the
budget is some twenty passes of the single model of the final size, and some ten of each leaf of a distilled
ensemble: all of them can be trained to the point where they overfit, and the single model past it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from ract.checkpoint.directory import write_text
from ract.cost import Shape, derive_shape
from ract.data.corpus import documents, identity, split_of
from ract.errors import BadInput, nearest

ENGLISH = ("wikipedia", "stories", "code", "reviews", "medical", "techdocs")
CHINESE, CHARACTERS, BUILT_IN = "zh_wikipedia", "tinyshakespeare", "stdlib"
SETTINGS = ("compute", "data")
SPLITS = ("train", "valid", "test")
BATCH_TOKENS, BLOCK_SIZE = 4096, 256


@dataclass(frozen=True)
class Setting:
    """One setting of a class of corpora.

    Shapes are written *blocks*x*width*. *leaf* is the compact transformer, *final* the single model of the final size
    (control 1), *sizes* what control 2 chooses among. *final_tokens* tokens of training of *final* are the budget.
    *subset_bytes* of the training text are used, 0 for all. A small text has no more than *most_tokens*.
    Windows of *block_size* tokens are read.
    """

    name: str
    vocab_size: int
    leaf: str
    final: str
    sizes: tuple[str, ...]
    final_tokens: int
    subset_bytes: int = 0
    most_tokens: int = 0
    scale: float = 1.0
    block_size: int = BLOCK_SIZE

    def shape(self, text: str) -> Shape:
        """The shape written *text*, at this scale."""
        blocks, width = parse_shape(text)
        return derive_shape(self.vocab_size, self.width(width), blocks)

    def width(self, width: int) -> int:
        """*width* × √scale in steps of 32: the parameters grow with the budget, the tokens do not."""
        return max(32, round(width * self.scale**0.5 / 32) * 32) if self.scale > 1 else width

    @property
    def flops(self) -> float:
        """The budget of every run: what the single model of the final size takes for its tokens."""
        each = self.shape(self.final).train_flops_per_token(self.block_size, BATCH_TOKENS, "muon")
        return each * self.final_tokens * min(1.0, self.scale)


@dataclass(frozen=True)
class Cell:
    """A corpus in a setting. *tuned_on* is the corpus whose tuned values are used: one for each class of corpora."""

    corpus: str
    setting: Setting
    tuned_on: str

    @property
    def name(self) -> str:
        """``corpus/setting``."""
        return f"{self.corpus}/{self.setting.name}"


_WIDE = ("8x128", "4x128", "2x128", "2x192", "4x96", "2x96")
_COMPUTE = Setting("compute", 2048, "2x128", "8x128", _WIDE, 750_000)
_SMALL = ("4x96", "6x160", "6x224")
_DATA = Setting("data", 1024, "4x96", "6x160", _SMALL, 800_000, 100_000, 42_000)


def cell(corpus: str, setting: str, scale: float = 1.0) -> Cell:
    """The cell of *corpus* in *setting*; *scale* times the budget. Raises BadInput for a setting that is not known."""
    if setting not in SETTINGS:
        raise BadInput(f'there is no setting "{setting}"', nearest(setting, SETTINGS))
    found = _COMPUTE if setting == "compute" else _DATA
    tuned_on = ENGLISH[0]
    if corpus == CHINESE:
        tuned_on = CHINESE
        compute = replace(_COMPUTE, vocab_size=4096, final_tokens=400_000)
        found = compute if setting == "compute" else replace(_DATA, vocab_size=2048, subset_bytes=120_000)
    elif corpus == CHARACTERS:  # 256 bytes and two special tokens: a vocabulary of characters
        tuned_on = CHARACTERS
        compute = replace(_COMPUTE, vocab_size=258, final_tokens=450_000)
        found = compute if setting == "compute" else replace(_DATA, vocab_size=258, subset_bytes=40_000)
    elif corpus == BUILT_IN:  # what the quick run uses
        tuned_on = BUILT_IN
        compute = replace(_COMPUTE, final_tokens=450_000, subset_bytes=6_000_000, final="8x96", leaf="2x96")
        compute = replace(compute, sizes=("2x96", "4x96", "8x96"))
        data = replace(_DATA, final="4x128", leaf="2x96", sizes=("2x96", "4x96", "4x128"), subset_bytes=80_000)
        found = compute if setting == "compute" else replace(data, final_tokens=900_000)
    return Cell(corpus, replace(found, scale=scale), tuned_on)


def parse_shape(text: str) -> tuple[int, int]:
    """``"8x128"`` as (blocks, width)."""
    blocks, _, width = text.partition("x")
    return int(blocks), int(width)


def sources(data: Path | None, corpus: str) -> dict[str, Path]:
    """The files of *corpus*, read where they lie: ``DATA/lm/NAME/SPLIT.txt`` or ``DATA/NAME/SPLIT.txt``."""
    if data is None:
        raise BadInput(f"{corpus} needs data", f"Give --data FOLDER, or use the corpus {BUILT_IN}")
    folder = next((f for f in (data / "lm" / corpus, data / corpus) if f.is_dir()), None)
    if folder is None:
        raise BadInput(f"{data} holds no corpus {corpus}", "It is a folder with train.txt, valid.txt and test.txt")
    files = {split: folder / f"{split}.txt" for split in SPLITS}
    missing = next((file for file in files.values() if not file.is_file()), None)
    if missing is not None:
        raise BadInput(f"{missing} does not exist", "A corpus is train.txt, valid.txt and test.txt")
    return files


def materialise(one: Cell, data: Path | None, folder: Path) -> dict[str, Path]:
    """The three files of *one*: the given ones where they are used whole, else what is used of them, in *folder*.

    A subset is the documents with the smallest hashes, so that it comes from all over the text and is the same
    everywhere. The built-in corpus, this Python's standard library, is divided by hash, file by file.
    """
    limit = one.setting.subset_bytes
    files = {} if one.corpus == BUILT_IN else sources(data, one.corpus)
    if files and not limit:
        return files
    record = folder / "text.json"
    known = {split: folder / f"{split}.jsonl" for split in (SPLITS if not files else ("train",))}
    wanted = {"corpus": one.corpus, "subset_bytes": limit, "source": str(files.get("train", BUILT_IN))}
    if not record.is_file() or json.loads(record.read_text(encoding="utf-8")) != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        texts = list(documents([str(files["train"])] if files else [BUILT_IN]))
        for split, file in known.items():
            own = texts if files else [p for text in texts if split_of(text) == split for p in _pieces(text)]
            chosen = _smallest(own, limit if split == "train" else _HELD_OUT_BYTES)
            write_text(file, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in chosen))
        write_text(record, json.dumps(wanted))
    return {**files, **known}


_HELD_OUT_BYTES, _PIECE_LINES = 200_000, 200


def _pieces(text: str) -> list[str]:
    """A file in pieces: what is held out should not be a few long files, and no file is in two splits."""
    lines = text.splitlines(keepends=True)
    pieces = ("".join(lines[start : start + _PIECE_LINES]) for start in range(0, len(lines), _PIECE_LINES))
    return [piece for piece in pieces if piece.strip()]


def _smallest(texts: list[str], limit_bytes: int) -> list[str]:
    """Of *texts* those with the smallest hashes, about *limit_bytes* in all, in their own order; equal ones once."""
    order = sorted({identity(text): text for text in texts}.items())
    kept: set[str] = set()
    size = 0
    for _, text in order:
        if size >= limit_bytes:
            break
        kept.add(text)
        size += len(text.encode("utf-8"))
    return [text for text in dict.fromkeys(texts) if text in kept]
