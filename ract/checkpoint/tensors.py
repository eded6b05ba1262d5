"""Read safetensors files: headers checked strictly, tensors whole or by the piece into a buffer the caller keeps.

The format (github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON header, then the data
section. The header is parsed here rather than by the library so that a damaged or hostile file is refused with its
reason before any memory is taken for it, and so that pieces of tensors can be read at their offsets.
"""

from __future__ import annotations

import json
import math
import os
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ract.checkpoint.directory import INDEX_FILE, ModelDirectory, read_json
from ract.errors import BadInput

# safetensors' spelling → torch; the formats of fewer than 8 bits have no whole bytes per element and are refused.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
FLOATS = ("F64", "F32", "F16", "BF16")
# safetensors itself stops at 100 MB; the parsed JSON takes some ten times its text, so half a million tensors must do.
MAX_HEADER_BYTES = 48 << 20
_POSITIONED = hasattr(os, "preadv")
_SEEK_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: bytes *begin* to *end* of the file *shard*, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: Path
    begin: int
    end: int

    @property
    def numel(self) -> int:
        """The number of elements (1 for a scalar)."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """The bytes of the tensor's data."""
        return self.end - self.begin


def itemsize(dtype: str) -> int:
    """Bytes of one element of a safetensors dtype."""
    return DTYPES[dtype].itemsize


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Name → :class:`TensorInfo` of a safetensors file, in the order of the data.

    Raises BadInput, naming the file and the tensor, unless the header is complete, is JSON without duplicate names, and
    its tensors (known dtype, sensible shape, as many bytes as the two imply) cover the data without gap or overlap.
    """
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > size - 8:
            raise _damaged(file, f"it is cut short: {size} bytes, with a header of {length} bytes announced")
        if length > MAX_HEADER_BYTES:
            raise _damaged(file, f"its header of {length} bytes is longer than the {MAX_HEADER_BYTES} allowed")
        text = handle.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no JSON object")
    header.pop("__metadata__", None)
    base = 8 + length
    infos = sorted((_entry(file, name, entry, base) for name, entry in header.items()), key=lambda i: (i.begin, i.end))
    position = base
    for info in infos:
        if info.begin != position:
            what = "overlaps the tensor before it" if info.begin < position else "leaves a gap before it"
            raise _damaged(file, f"tensor {info.name} {what}")
        position = info.end
    if position != size:
        reason = "data is cut short" if position > size else "data goes on after the last tensor"
        raise _damaged(file, f"its {reason}: {position} bytes announced, {size} there")
    return {info.name: info for info in infos}


def _entry(file: Path, name: str, entry: Any, base: int) -> TensorInfo:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _damaged(file, f"tensor {name} lacks its dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _damaged(file, f"tensor {name} has the dtype {dtype!r}, which is not supported")
    if not _counts(shape):
        raise _damaged(file, f"tensor {name} has the shape {_short(shape)}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(file, f"tensor {name} has the data_offsets {_short(offsets)}")
    if offsets[1] - offsets[0] != math.prod(shape) * itemsize(dtype):
        raise _damaged(
            file, f"tensor {name} of shape {_short(shape)} and dtype {dtype} does not fill {_short(offsets)}"
        )
    return TensorInfo(name, dtype, tuple(shape), file, base + offsets[0], base + offsets[1])


def _counts(value: Any) -> bool:
    """Whether *value* is a short list of whole numbers that a file can hold (JSON's true is no number here)."""
    return isinstance(value, list) and len(value) <= 64 and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"duplicate key {name!r}")
        result[name] = value
    return result


def _damaged(file: Path, reason: str) -> BadInput:
    return BadInput(f"{file} is not a usable safetensors file: {reason}", "Copy the file again from its source")


class TensorReader:
    """The tensors of one checkpoint, however many shards it has: ``infos`` by name, data read at offsets.

    Reading is safe from several threads. The files stay open until :meth:`close` or the reader is collected.
    """

    def __init__(self, shards: Iterable[Path]) -> None:
        self.infos: dict[str, TensorInfo] = {}
        for shard in shards:
            for name, info in read_header(shard).items():
                if name in self.infos:
                    raise BadInput(
                        f"tensor {name} is in both {self.infos[name].shard} and {shard}", "Remove one of the files"
                    )
                self.infos[name] = info
        self._handles: dict[Path, int] = {}
        self.close = weakref.finalize(self, _close, self._handles)

    @classmethod
    def of(cls, model: ModelDirectory) -> TensorReader:
        """A reader of *model*; BadInput when the shards do not hold what the index says they hold."""
        reader = cls(model.shards)
        if (model.path / INDEX_FILE).is_file():
            for name, shard in read_json(model.path / INDEX_FILE)["weight_map"].items():
                info = reader.infos.get(name)
                if info is None or info.shard.name != shard:
                    raise BadInput(
                        f"{model.path / INDEX_FILE} puts tensor {name} in {shard}, where it is not",
                        "Copy the checkpoint again from its source",
                    )
        return reader

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, name: str) -> torch.Tensor:
        """The tensor *name*, whole, in its own dtype and shape; BadInput if there is none of that name."""
        info = self.infos.get(name)
        if info is None:
            raise BadInput(f"there is no tensor {name} in {', '.join({str(i.shard) for i in self.infos.values()})}")
        data = torch.empty(info.size_bytes, dtype=torch.uint8)
        self.read_into(info.shard, info.begin, data.numpy().data)
        return data.view(DTYPES[info.dtype]).reshape(info.shape)

    def read_into(self, shard: Path, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* with the bytes of *shard* from *offset* on."""
        handle = self._handles.get(shard)
        if handle is None:
            handle = self._open(shard)
        done = 0
        while done < len(buffer):
            count = read_at(handle, buffer[done:], offset + done)
            if count == 0:
                raise BadInput(f"{shard} became shorter while it was read", "Run again when nothing else writes to it")
            done += count

    def _open(self, shard: Path) -> int:
        with _SEEK_LOCK:
            if shard not in self._handles:
                self._handles[shard] = os.open(shard, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            return self._handles[shard]


def _close(handles: dict[Path, int]) -> None:
    while handles:
        os.close(handles.popitem()[1])


def read_at(handle: int, buffer: memoryview, offset: int) -> int:
    """Read into *buffer* at *offset*, leaving the file position alone where the system can; the bytes read."""
    if _POSITIONED:
        return os.preadv(handle, [buffer], offset)
    with _SEEK_LOCK:
        os.lseek(handle, offset, os.SEEK_SET)
        data = os.read(handle, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def write_at(handle: int, buffer: memoryview, offset: int) -> int:
    """Write *buffer* at *offset*; the bytes written, which may be fewer."""
    if _POSITIONED:
        return os.pwrite(handle, buffer, offset)
    with _SEEK_LOCK:
        os.lseek(handle, offset, os.SEEK_SET)
        return os.write(handle, buffer)
