"""ReAct: Recursive Aggregation of Compact Transformers.

Every verb of the command line is a function of the same name here. They are imported on first use, so that
``import ract`` stays light and works in an install without torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOME_OF = {
    "aggregate": "ract.aggregate.run",
    "build": "ract.report.build",
    "check": "ract.tree.check",
    "classify": "ract.runtime.classify",
    "compress": "ract.compress.compress",
    "evaluate": "ract.evaluate.tasks",
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
    "compress",
    "evaluate",
    "generate",
    "init",
    "train",
    "translate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ract' has no attribute {name!r}")
    return _function(name)


def __dir__() -> list[str]:
    return __all__


def _function(name: str) -> Any:
    module, _, function = _HOME_OF[name].partition(":")
    return getattr(importlib.import_module(module), function or name)


class _CallablePackage(ModuleType):
    """A package that has a verb's name, such as ``ract.aggregate``: called, it is the verb."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return _function(self.__name__.rpartition(".")[2])(*arguments, **options)


class _Root(ModuleType):
    """``ract`` itself: when a package of it is imported, the import system sets the attribute of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME_OF and isinstance(value, ModuleType):
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Root
