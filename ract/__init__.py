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
}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ract' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
