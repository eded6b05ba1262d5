"""What was made and measured so far, kept beside the output until the command has an answer: one that is cut short, by
Ctrl-C, a kill or a full disk, goes on when it is given again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ract import __version__
from ract.checkpoint.crashpoints import crash_point
from ract.checkpoint.directory import publish, recover, write_text
from ract.checkpoint.lineage import digest
from ract.data.heldout import Batch
from ract.errors import RactError, disk_errors
from ract.locks import held

RECORD = "record.json"


@contextmanager
def kept_beside(out: Path) -> Iterator[Path]:
    """The folder for what is tried on the way to *out*; another process with the same output waits.

    It is removed when the block ends, with a result or because a limit or the input is wrong.
    """
    out = out.absolute()
    work = out.parent / f".{out.name}.compress"
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    with held(work):
        recover(work)
        try:
            yield work
        except RactError as error:
            if error.__cause__ is None or isinstance(error.__cause__, RactError) or not any(work.iterdir()):
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def made_once(work: Path, key: Any, make: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The folder below *work* for what *key* (JSON) describes, and the record of it: *make* fills the folder and
    returns the record, unless a whole one is there.
    """
    place = work / digest([__version__, key])[:16]
    if not (place / RECORD).is_file():
        with publish(place, force=True) as staging:
            write_text(staging / RECORD, json.dumps(make(staging)))
        crash_point("candidate-kept")
    return place, json.loads((place / RECORD).read_text(encoding="utf-8"))


def digest_of(batches: Sequence[Batch]) -> str:
    """A hash of the tokens and labels of *batches*."""
    found = hashlib.sha256()
    for batch in batches:
        for name, tensor in sorted(batch.items()):
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()
