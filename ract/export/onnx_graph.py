"""A hand-written ONNX graph, and its weights in one file beside it, which ONNX Runtime maps into memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

CONTRIB = "com.microsoft"  # the domain of ONNX Runtime's own operators

_ALIGNMENT = 4096  # of every tensor in the file, a page: what mapping it asks for
_INLINE = 1024  # bytes; smaller tensors stand in the graph itself, where the optimizer can see them


class Graph:
    """The graph *name* while it is put together: nodes, inputs and outputs in the order they are added."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.weights = Weights(f"{name}.onnx.data")
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """An input of the graph; gives *name* back."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """An output of the graph; gives *name* back."""
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def node(
        self, kind: str, inputs: Sequence[str], out: str | Sequence[str], *, contrib: bool = False, **attributes: Any
    ) -> str:
        """An operator; gives its first output back."""
        outputs = [out] if isinstance(out, str) else list(out)
        domain = CONTRIB if contrib else ""
        self._nodes.append(helper.make_node(kind, list(inputs), outputs, domain=domain, **attributes))
        return outputs[0]

    def numbers(self, values: Sequence[int]) -> str:
        """Whole numbers as a constant vector; gives its name back."""
        return self.weights.add("numbers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def save(self, folder: Path) -> None:
        """``<name>.onnx`` and its weights into *folder*."""
        self.weights.save(folder)
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self.weights.initializers)
        versions = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=versions, ir_version=10, producer_name="ract")
        onnx.save_model(model, folder / f"{self.name}.onnx")


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
