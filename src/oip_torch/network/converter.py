"""How is onnx2torch imported without torchvision, which takes longer than all the rest of it?

Two of its modules, for operations that no CNN has, import torchvision, which imports torch's compiler. They get
stand-ins, which import what they stand for at the first use: so onnx2torch stays whole for everybody in this process.
"""

from __future__ import annotations

import importlib
import sys
import threading
from types import ModuleType
from typing import Any

__all__ = ["onnx2torch_module"]

_LATE = ("torchvision", "torchvision.ops")
_alone = threading.Lock()


def onnx2torch_module() -> ModuleType:
    """The package onnx2torch; torchvision comes only with what needs it, unless it is there already."""
    with _alone:
        if "onnx2torch" in sys.modules or any(name in sys.modules for name in _LATE):
            return importlib.import_module("onnx2torch")
        sys.modules.update({name: _Late(name) for name in _LATE})
        try:
            return importlib.import_module("onnx2torch")
        finally:
            for name in _LATE:
                del sys.modules[name]


class _Late(ModuleType):
    """Stands for a module until something of it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # a package, to the import system

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if f"{self.__name__}.{name}" in _LATE:
            return _Late(f"{self.__name__}.{name}")

        def late(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return late
