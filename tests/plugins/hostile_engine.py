"""An engine from outside the project, as bad at leaving as an engine can be; `ray_cluster` has it.

Its server is the simulator, with relatives that a signal to its process group does not reach.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from tuner.engines.base import RunningEngine
from tuner.engines.simulator.adapter import SimulatorEngine

RAISES = "HOSTILE_ENGINE_RAISES"  # in the task's engine.env: the adapter is broken as well


class HostileEngine(SimulatorEngine):
    """The simulator behind `python -m hostile_engine`."""

    name = "hostile"
    serve = ("hostile_engine",)

    @contextmanager
    def launch(self, config: Mapping[str, Any], **how: Any) -> Iterator[RunningEngine]:
        with super().launch(config, **how) as server:
            if RAISES in self.task.engine.env:
                raise ZeroDivisionError("an exception of the adapter itself")
            yield server


def main() -> NoReturn:
    """Leaves behind a session, a daemon, and a child of each, none of which hears SIGTERM; then serves."""
    for daemon in (False, True):
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if daemon and os.fork():
                os._exit(0)
            os.fork()
            time.sleep(600)
            os._exit(0)
    os.execv(sys.executable, [sys.executable, "-m", "tuner.engines.simulator", *sys.argv[1:]])


if __name__ == "__main__":
    main()
