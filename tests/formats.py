"""The formats that models are exported to, and the package that each needs."""

from __future__ import annotations

import pytest

FORMATS = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "gguf": "llama_cpp",
    "ctranslate2": "ctranslate2",
    "litert": "litert_torch",
    "executorch": "executorch",
}
WARNING = ("litert", "executorch")  # converters that warn of their own parts
EACH = [pytest.param(f, marks=pytest.mark.filterwarnings("ignore") if f in WARNING else ()) for f in FORMATS]
