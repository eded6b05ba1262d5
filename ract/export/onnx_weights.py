"""The weights of a hand-written ONNX graph: one file beside it, which ONNX Runtime maps into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

_ALIGNMENT = 4096  # of every tensor in the file, a page: what mapping it asks for
_INLINE = 1024  # bytes; smaller tensors stand in the graph itself, where the optimizer can see them


class Weights:
    """Tensors by name, as initializers of a graph that refer to the file *name*."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.initializers: list[TensorProto] = []
        self._arrays: list[np.ndarray] = []
        self._offsets: dict[str, int] = {}
        self._end = 0

    def add(self, name: str, array: np.ndarray) -> str:
        """Add *array* as *name*; gives *name* back. What is there already stays."""
        if any(one.name == name for one in self.initializers):
            return name
        if array.nbytes < _INLINE:
            self.initializers.append(
                helper.make_tensor(name, _kind(array), array.shape, np.ascontiguousarray(array).tobytes(), raw=True)
            )
            return name
        self._offsets[name] = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        self._end = self._offsets[name] + array.nbytes
        self._arrays.append(np.ascontiguousarray(array))
        self.initializers.append(self._reference(name, name, array.shape, _kind(array), array.nbytes))
        return name

    def again(self, name: str, of: str, shape: tuple[int, ...]) -> str:
        """The bytes of the tensor *of* once more, as *name* with another *shape*; they stand in the file once."""
        first = next(one for one in self.initializers if one.name == of)
        if of not in self._offsets:
            self.initializers.append(helper.make_tensor(name, first.data_type, shape, first.raw_data, raw=True))
        else:
            size = int(next(e.value for e in first.external_data if e.key == "length"))
            self.initializers.append(self._reference(name, of, shape, first.data_type, size))
        return name

    def save(self, folder: Path) -> None:
        """Write the file into *folder*."""
        with (folder / self.name).open("wb") as file:
            for array in self._arrays:
                file.seek(-(-file.tell() // _ALIGNMENT) * _ALIGNMENT)
                file.write(array.tobytes())

    def _reference(self, name: str, of: str, shape: tuple[int, ...], kind: int, size: int) -> TensorProto:
        tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.name), ("offset", self._offsets[of]), ("length", size)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        return tensor


def _kind(array: np.ndarray) -> int:
    return helper.np_dtype_to_tensor_dtype(array.dtype)
