"""Engine adapters: how a configuration becomes a running server. A new engine is one file and one line."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tuner.errors import EngineUnavailable
from tuner.registry import engines, unknown_engine

if TYPE_CHECKING:
    from tuner.engines.base import Engine
    from tuner.task import Task


def make_engine(task: Task, name: str | None = None) -> Engine:
    """The adapter called `name` (default: the task's `base_runtime`); EngineUnavailable if unknown."""
    name = name or task.base_runtime
    if problem := unknown_engine(name):
        raise EngineUnavailable(problem)
    module, _, attribute = engines()[name].partition(":")
    engine: Engine = getattr(import_module(module), attribute)(task)
    return engine
