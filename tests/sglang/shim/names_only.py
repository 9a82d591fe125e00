"""Packages in name only: every attribute and every submodule of them exists, and nothing can be computed.

SGLang imports GPU packages at its start whose functions it never calls on a CPU. `stand_in("triton")`
lets those imports pass: what is taken from the package is a class of its name, which can be an annotation,
a base class, a decorator (it gives back what it decorates), or what `except` and `isinstance` name.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Name(type):
    def __getattr__(cls, name: str) -> Any:
        return _named(cls.__module__, name)

    def __call__(cls, *args: Any, **options: Any) -> Any:
        if len(args) == 1 and callable(args[0]) and not options:
            return args[0]  # @triton.jit
        return lambda decorated: decorated  # @triton.jit(...)


def _named(module: str, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Name(name, (Exception,), {"__module__": module})


class _Package(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return _named(self.__name__, name)


class _Finder(MetaPathFinder, Loader):
    def __init__(self, package: str) -> None:
        self._prefix = f"{package}."

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.startswith(self._prefix) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Package(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: its attributes come into being when they are asked for."""


def stand_in(package: str) -> None:
    """Makes `package`, which is being imported, one in name only; what it defines itself stays."""
    sys.meta_path.insert(0, _Finder(package))
    sys.modules[package].__class__ = _Package
