"""What measures a configuration: an engine, the load generator for it, and the clock that they go by.

A study, a trial in the foreground and a prediction differ in their rig alone. Knows nothing of Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from tuner.engines import make_engine
from tuner.engines.base import Engine
from tuner.engines.simulator.in_process import VirtualEngine, VirtualServer
from tuner.errors import UsageError
from tuner.load import LOAD_GENERATORS
from tuner.load.base import LoadGenerator
from tuner.load.virtual import VirtualClient
from tuner.task import Task

SIMULATED_FLAGS = ("simulator", "sglang")  # engines whose flags the simulator knows


@dataclass(frozen=True)
class Rig:
    """An engine and what loads it. `clock` counts the seconds that a trial's time limit is of."""

    engine: Engine
    load: LoadGenerator
    clock: Callable[[], float] = time.monotonic
    virtual: bool = False


def rig(task: Task, engine: str | None = None, *, virtual: bool = False, seed: int = 0) -> Rig:
    """The rig of `task` on `engine` (default: its `base_runtime`).

    A `virtual` one is the simulator's in virtual time, its noise seeded with `seed`; UsageError where the
    engine has other flags than SGLang's.
    """
    if not virtual:
        return Rig(make_engine(task, engine), LOAD_GENERATORS[task.benchmark.tool])
    name = engine or task.base_runtime
    if name not in SIMULATED_FLAGS:
        raise UsageError(f"the simulator knows SGLang's flags, not those of {name}")
    simulated = VirtualEngine(task, seed)

    def serving() -> VirtualServer:
        assert simulated.server is not None
        return simulated.server

    return Rig(cast(Engine, simulated), VirtualClient(serving), lambda: simulated.now_s, virtual=True)
