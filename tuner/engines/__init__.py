"""Engine adapters: how a configuration becomes a running server. A new engine is one file and one line."""

from __future__ import annotations

from collections.abc import Iterator
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


def survey(python: str | None = None) -> Iterator[tuple[str, str, str]]:
    """(name, version, what is missing) of every engine on this machine; one of the last two is empty."""
    from tuner.task import make_task  # noqa: PLC0415  a simulator's process imports this package, and no pydantic

    options = {} if python is None else {"python": python}
    task = make_task({"model": {"id_or_path": "none"}, "engine": options})
    for name in sorted(engines()):
        try:
            yield name, make_engine(task, name).version(), ""
        except (EngineUnavailable, ImportError, AttributeError) as missing:  # a plug-in may be broken
            yield name, "", str(missing)
