"""Size and hash of the files in a directory: what a damaged copy is told by. Needs the standard library alone."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of one file of the directory."""

    size_bytes: int
    sha256: str
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # inside records that pydantic reads


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_records(directory: Path, without: Collection[str] = ()) -> dict[str, FileRecord]:
    """Size and hash of every file in *directory* but those called as in *without* (and hidden files)."""
    files = sorted(
        p for p in directory.rglob("*") if p.is_file() and not p.name.startswith(".") and p.name not in without
    )
    return {
        p.relative_to(directory).as_posix(): FileRecord(size_bytes=p.stat().st_size, sha256=sha256_file(p))
        for p in files
    }
