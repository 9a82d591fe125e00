"""Engine adapters: how a configuration becomes a running server. A new engine is one file and one line."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

from tuner.errors import EngineUnavailable

if TYPE_CHECKING:
    from tuner.engines.base import Engine
    from tuner.task import Task

ENGINES = {
    "sglang": "tuner.engines.sglang:SGLangEngine",
    "simulator": "tuner.engines.simulator.adapter:SimulatorEngine",
}


def make_engine(task: Task, name: str | None = None) -> Engine:
    """The adapter called `name` (default: the task's `base_runtime`); EngineUnavailable if unknown."""
    name = name or task.base_runtime
    if name not in ENGINES:
        near = get_close_matches(name, ENGINES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(ENGINES))}"
        raise EngineUnavailable(f"base_runtime: no engine is called {name!r} ({hint})")
    module, _, attribute = ENGINES[name].partition(":")
    engine: Engine = getattr(import_module(module), attribute)(task)
    return engine
