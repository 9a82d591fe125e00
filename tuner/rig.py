"""What measures a configuration: an engine, the load generator for it, and the clock that they go by.

A study, a trial in the foreground and a prediction differ in their rig alone. Knows nothing of Ray.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tuner.engines import make_engine
from tuner.engines.base import Engine, Value
from tuner.engines.simulator.constants import read_constants
from tuner.engines.simulator.gpus import GPUS
from tuner.engines.simulator.in_process import VirtualEngine, VirtualServer
from tuner.errors import UsageError
from tuner.load import LOAD_GENERATORS
from tuner.load.base import LoadGenerator
from tuner.load.virtual import VirtualClient
from tuner.task import Task

SIMULATED_FLAGS = ("simulator", "sglang")  # engines whose flags the simulator knows


def with_args(task: Task, args: Mapping[str, Value]) -> Task:
    """`task` with these fixed flags of its engine in place of its own."""
    return task.model_copy(update={"engine": task.engine.model_copy(update={"args": dict(args)})})


def calibrated(task: Task, path: str | Path) -> Task:
    """`task` as the simulator runs it with a file of `tuner calibrate`; UsageError for what is none.

    Its own `gpu` goes before that of the file. The constants go along as text: no other machine needs it.
    """
    try:
        document = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        text = json.dumps(document["constants"])
        read_constants(text)
        gpu = document.get("gpu", "h100")
    except OSError as error:
        raise UsageError(f"--calibration: {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"--calibration: {path} is no file of `tuner calibrate`: {error}") from error
    if gpu not in GPUS:
        raise UsageError(f"--calibration: {path} is of the GPU {gpu!r}, which the simulator does not know")
    return with_args(task, {"gpu": gpu, **task.engine.args, "calibration": text})


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
