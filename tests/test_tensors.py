"""Reading and writing safetensors: against the library, and against damaged files."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ract.checkpoint import tensors as tensors_module
from ract.checkpoint.directory import open_model
from ract.checkpoint.tensors import DTYPES, TensorReader, read_header
from ract.checkpoint.writer import TensorWriter, lay_out, write_tensors
from ract.errors import BadInput, RactError
from tests.checkpoints import bits, checkpoint, random_tensors

LIBRARY_DTYPES = [name for name in DTYPES if name != "C64"]


def every_dtype() -> dict[str, torch.Tensor]:
    data = torch.arange(48, dtype=torch.uint8)
    return {name: data.clone().view(DTYPES[name]) for name in LIBRARY_DTYPES if name != "BOOL"} | {
        "BOOL": data > 20,
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
    }


def raw(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(every_dtype(), file)
    with TensorReader([file]) as reader:
        for name, tensor in every_dtype().items():
            read = reader.read(name)
            assert (read.dtype, read.shape, bits(read)) == (tensor.dtype, tensor.shape, bits(tensor)), name
        assert reader.infos["scalar"].numel == 1
        with pytest.raises(BadInput, match="no tensor other"):
            reader.read("other")


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    write_tensors(tmp_path, every_dtype())
    loaded = load_file(tmp_path / "model.safetensors")
    assert {name: bits(t) for name, t in loaded.items()} == {name: bits(t) for name, t in every_dtype().items()}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    for info in read_header(tmp_path / "model.safetensors").values():
        assert info.begin % DTYPES[info.dtype].itemsize == 0, f"{info.name} is not aligned"


def test_shards_hold_no_more_than_asked_and_the_index_finds_everything(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(10)} | {"large": torch.zeros(1000)}
    write_tensors(tmp_path, tensors, max_shard_bytes=900)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 8000, "total_parameters": 2000}
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert [s.name for s in shards] == [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]
    for shard in shards:
        own = read_header(shard)
        assert sum(i.size_bytes for i in own.values()) <= 900 or list(own) == ["large"]
    (tmp_path / "config.json").write_text("{}")
    with TensorReader.of(open_model(tmp_path)) as reader:
        assert all(torch.equal(reader.read(name), tensor) for name, tensor in tensors.items())


def test_reads_without_positioned_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors_module, "_POSITIONED", False)
    write_tensors(tmp_path, random_tensors(0))
    with TensorReader([tmp_path / "model.safetensors"]) as reader:
        assert all(torch.equal(reader.read(name), tensor) for name, tensor in random_tensors(0).items())


DAMAGED = {
    "empty file": (b"", None, "cut short"),
    "header cut short": (b'{"a": ', 500, "cut short"),
    "huge header": (b"{}", 1 << 62, "cut short"),
    "no JSON": (b"{not json}", None, "not valid JSON"),
    "no UTF-8": (b'{"\xff\xfe": 1}', None, "not valid JSON"),
    "deep JSON": (b"[" * 200_000, None, "not valid JSON"),
    "no object": (b"[1, 2]", None, "no JSON object"),
    "duplicate key": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":1}', None, "duplicate key 'a'"),
    "entry is no object": ({"a": 5}, None, "tensor a lacks"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, None, "tensor a lacks"),
    "unknown dtype": ({"a": entry(0, 4, [1], "F12")}, None, "dtype 'F12'"),
    "sub-byte dtype": ({"a": entry(0, 4, [8], "F4")}, None, "dtype 'F4'"),
    "dtype is a list": ({"a": {**entry(0, 4, [1]), "dtype": ["F32"]}}, None, "not supported"),
    "negative side": ({"a": entry(0, 4, [-1])}, None, "shape"),
    "shape of booleans": ({"a": entry(0, 4, [True])}, None, "shape"),
    "shape of floats": ({"a": {**entry(0, 4, []), "shape": [1.0]}}, None, "shape"),
    "shape is text": ({"a": {**entry(0, 4, []), "shape": "1"}}, None, "shape"),
    "huge side": ({"a": entry(0, 4, [1 << 70])}, None, "shape"),
    "huge product": ({"a": entry(0, 4, [1 << 40, 1 << 40])}, None, "does not fill"),
    "end before begin": ({"a": entry(4, 0, [1])}, None, "data_offsets"),
    "negative offset": ({"a": entry(-4, 0, [1])}, None, "data_offsets"),
    "three offsets": ({"a": {**entry(0, 4, [1]), "data_offsets": [0, 2, 4]}}, None, "data_offsets"),
    "wrong size": ({"a": entry(0, 4, [2])}, None, "does not fill"),
    "overlap": ({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, None, "overlaps"),
    "partial overlap": ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, None, "overlaps"),
    "gap": ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, None, "gap"),
    "data cut short": ({"a": entry(0, 400, [100])}, None, "data is cut short"),
    "huge tensor": ({"a": entry(0, 1 << 50, [1 << 48])}, None, "data is cut short"),
    "data left over": ({"a": entry(0, 4, [1])}, None, "goes on after"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_with_its_reason_and_without_taking_memory(case: str, tmp_path: Path) -> None:
    header, length, reason = DAMAGED[case]
    file = raw(tmp_path, header, b"\0" * 12, length)
    if case == "empty file":
        file.write_bytes(b"")
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=reason) as raised:
            TensorReader([file])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(file) in str(raised.value)
    assert peak < 4 << 20


def test_a_header_beyond_the_limit_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors_module, "MAX_HEADER_BYTES", 100)
    with pytest.raises(BadInput, match="longer than the 100 allowed"):
        read_header(raw(tmp_path, {"a" * 200: entry(0, 4, [1])}, b"\0" * 4))


@st.composite
def mutations(draw: st.DrawFn) -> tuple[int, int, bytes]:
    return draw(st.integers(0, 400)), draw(st.integers(0, 20)), draw(st.binary(max_size=20))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(mutations(), min_size=1, max_size=3), cut=st.none() | st.integers(0, 400))
def test_any_change_to_a_file_is_refused_or_harmless(
    tmp_path: Path, changes: list[tuple[int, int, bytes]], cut: int | None
) -> None:
    valid = tmp_path / "valid.safetensors"
    if not valid.exists():
        save_file(random_tensors(0), valid)
    data = bytearray(valid.read_bytes())
    for position, length, new in changes:
        data[position : position + length] = new
    file = tmp_path / "changed.safetensors"
    file.write_bytes(bytes(data[:cut]))
    try:
        reader = TensorReader([file])
    except BadInput as error:
        assert str(file) in str(error)
        return
    with reader:  # still a coherent file: every tensor can be read, within the file
        assert sum(info.size_bytes for info in reader.infos.values()) < len(data)
        for name in reader.infos:
            assert tuple(reader.read(name).shape) == reader.infos[name].shape


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.dictionaries(
        st.text(max_size=5),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from([*DTYPES, "F4", "", None]),
                "shape": st.lists(st.integers(-1, 5) | st.integers(), max_size=4),
                "data_offsets": st.lists(st.integers(-1, 40), max_size=3),
            }
        ),
        max_size=4,
    )
)
def test_any_header_is_refused_or_covers_the_data(tmp_path: Path, header: dict[str, Any]) -> None:
    file = raw(tmp_path, header, b"\1" * 24)
    try:
        infos = read_header(file)
    except BadInput:
        return
    covered = sorted((i.begin, i.end) for i in infos.values() if i.size_bytes)
    assert [a for a, _ in covered[1:]] == [b for _, b in covered[:-1]]
    assert sum(b - a for a, b in covered) == 24


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"a": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(BadInput, match="tensor a is in both"):
        TensorReader([tmp_path / "one.safetensors", tmp_path / "two.safetensors"])


def test_an_index_that_contradicts_its_shards_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "m", {"a": torch.zeros(2)})
    index = {"weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"puts tensor b in model\.safetensors, where it is not"):
        TensorReader.of(open_model(tmp_path / "m"))


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(100)}, tmp_path / "a.safetensors")
    with TensorReader([tmp_path / "a.safetensors"]) as reader:
        with (tmp_path / "a.safetensors").open("r+b") as file:
            file.truncate(200)
        with pytest.raises(BadInput, match="became shorter"):
            reader.read("a")


def test_no_reader_accepts_a_file_before_it_is_complete(tmp_path: Path) -> None:
    layout = lay_out(tmp_path, [("a", "F32", (2,))])
    with TensorWriter(layout) as writer:
        writer.write("a", torch.ones(2))
        with pytest.raises(BadInput):
            read_header(tmp_path / "model.safetensors")
    assert read_header(tmp_path / "model.safetensors")["a"].shape == (2,)


def test_a_file_whose_writing_failed_stays_unreadable(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), TensorWriter(lay_out(tmp_path, [("a", "F32", (2,))])) as writer:
        writer.write("a", torch.ones(2) / (1 // 0))
    with pytest.raises(BadInput):
        read_header(tmp_path / "model.safetensors")


def test_the_writer_refuses_another_shape_dtype_or_an_existing_file(tmp_path: Path) -> None:
    layout = lay_out(tmp_path, [("a", "F32", (2,))])
    with pytest.raises(RactError, match="tensor a is"), TensorWriter(layout) as writer:
        writer.write("a", torch.ones(3))
    with pytest.raises(FileExistsError), TensorWriter(layout):
        pass
