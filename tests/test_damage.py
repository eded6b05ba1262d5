"""Damaged exports of every format: a clear error each time, never a crash, a hang or another answer."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ract.errors import BadInput
from ract.runtime import manifest as module
from ract.runtime.engines.base import open_graphs
from ract.runtime.manifest import HeldOut, Manifest, read_manifest, write_manifest
from tests.formats import EACH, FORMATS

FLIPS = 200


def flipped(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    changed = bytearray(content)
    changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


@pytest.mark.slow
@pytest.mark.parametrize("form", EACH)
def test_flipped_bits_and_truncations_are_refused(form: str, shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip(FORMATS[form], exc_type=ImportError)
    from ract.export.export import export

    story = shared_data / "checkpoints" / "stories260k"
    source = export(story, tmp_path / "good", format=form).path  # type: ignore[arg-type]
    chance = random.Random(0)
    files = sorted(source.iterdir())
    for number in range(FLIPS):
        file = files[number % len(files)]
        copy = tmp_path / "bad"
        shutil.copytree(source, copy)
        damage: Callable[[bytes, random.Random], bytes] = flipped if number % 4 else cut
        (copy / file.name).write_bytes(damage(file.read_bytes(), chance))
        with pytest.raises(BadInput, match=r"Export the model again|Copy it again|Make one"):
            open_graphs(copy)
        shutil.rmtree(copy)
    open_graphs(source)


def written(folder: Path) -> bytes:
    (folder / "model.onnx").write_bytes(b"graph")
    held_out = HeldOut(data="texts", loss=2.5, loss_original=2.25)
    write_manifest(folder, Manifest(kind="encoder", labels=("bad", "good"), limit=7, ends=(1, 2), held_out=held_out))
    return (folder / "manifest.json").read_bytes()


def test_every_flipped_bit_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    good = written(tmp_path)
    before = read_manifest(tmp_path)
    for place in range(len(good)):
        changed = bytearray(good)
        changed[place] ^= 1 << (place % 8)
        (tmp_path / "manifest.json").write_bytes(bytes(changed))
        try:
            assert read_manifest(tmp_path) == before  # a space that became another kind of space
        except BadInput as error:
            assert "Export the model again" in str(error)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "elephant"},
        {"kind": 3},
        {"limit": -1},
        {"limit": 2.5},
        {"limit": True},
        {"labels": "bad"},
        {"labels": [1, 2]},
        {"ends": [1, None]},
        {"format": 2},
        {"engine": ["onnx"]},
        {"files": {"model.onnx": {"size_bytes": 1}}},
        {"files": {"../model.onnx": {"size_bytes": 1, "sha256": ""}}},
        {"files": 3},
        {"held_out": {"data": "x", "loss": float("nan"), "loss_original": 1.0}},
        {"held_out": []},
        {"begin": "a"},
        {"colour": "red"},
        {"source": None},
    ],
)
def test_values_that_cannot_be_are_refused_whoever_wrote_them(tmp_path: Path, change: dict[str, Any]) -> None:
    given = json.loads(written(tmp_path))
    given.pop("digest")
    given |= change
    (tmp_path / "manifest.json").write_text(json.dumps({**given, "digest": module._digest(given)}), encoding="utf-8")
    with pytest.raises(BadInput, match="Export the model again"):
        read_manifest(tmp_path)


def test_what_is_no_object_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"[]", b"null", b"3", b"{", b"\xff\xfe", b"[" * 100_000, b'{"kind": "decoder"}'):
        (tmp_path / "manifest.json").write_bytes(content)
        with pytest.raises(BadInput, match="Export the model again"):
            read_manifest(tmp_path)
