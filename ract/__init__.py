"""ReAct: Recursive Aggregation of Compact Transformers.

Every verb of the command line is a function of the same name here. They are imported on first use, so that
``import ract`` stays light and works in an install without torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME_OF = {
    "aggregate": "ract.aggregate.run",
    "build": "ract.tree.build",
    "check": "ract.tree.check",
    "classify": "ract.runtime.classify",
    "evaluate": "ract.evaluate.language_modeling:evaluate_directory",
    "generate": "ract.runtime.generate",
    "init": "ract.tree.init",
    "train": "ract.tree.leaf",
    "translate": "ract.runtime.translate",
}

__all__ = [
    "__version__",
    "aggregate",
    "build",
    "check",
    "classify",
    "evaluate",
    "generate",
    "init",
    "train",
    "translate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ract' has no attribute {name!r}")
    module, _, function = _HOME_OF[name].partition(":")
    return getattr(importlib.import_module(module), function or name)


def __dir__() -> list[str]:
    return __all__
