"""Empty stand-ins for modules that a loader imports and doesn't use to load a LoRA."""

import sys
import types
from typing import Any


class _Empty(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _empty(name)


def _empty(name: str) -> Any:
    """A class that can be called, subclassed, asked for attributes and used in `isinstance`."""
    return _Empty(name, (), {"__init__": _nothing})


def _nothing(*_: Any, **__: Any) -> None:
    return None


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _empty(name)
        setattr(self, name, value)
        return value


def stand_in(*names: str) -> types.ModuleType:
    """Put empty modules of these names into `sys.modules`; return the last one."""
    module = types.ModuleType("none")
    for name in names:
        module = _Module(name)
        module.__path__ = []
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, module)
    return module
