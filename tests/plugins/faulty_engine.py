"""An engine from outside the project with a flag, `fault`, that breaks it in the way of that name.

Its server is the simulator; `ray_cluster` has it.
"""

from __future__ import annotations

import http.server
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import hostile_engine

from tuner.engines.base import RunningEngine
from tuner.engines.simulator.adapter import SimulatorEngine
from tuner.failures import Cause, Failure, Stage, TrialFailed

BAD_NODE = "FAULTY_ENGINE_BAD_NODE"  # in the environment of a node whose GPUs are broken

_FLOOD = b"the engine is quite well, and says so again and again\n" * 20_000
_FLOODS = 100  # of a megabyte


class FaultyEngine(SimulatorEngine):
    """The simulator behind `python -m faulty_engine`."""

    name = "faulty"
    serve = ("faulty_engine",)

    def check(self, config: Mapping[str, Any]) -> None:
        super().check({flag: value for flag, value in config.items() if flag != "fault"})

    @contextmanager
    def launch(self, config: Mapping[str, Any], **how: Any) -> Iterator[RunningEngine]:
        if os.environ.get(BAD_NODE):
            raise TrialFailed(Failure(Stage.START, Cause.DRIVER, "CUDA error: uncorrectable ECC error"))
        with super().launch(config, **how) as server:
            yield server


def main() -> NoReturn:
    """Breaks as its argument `--fault` asks, or serves."""
    arguments = sys.argv[1:]
    fault = "none"
    if "--fault" in arguments:
        place = arguments.index("--fault")
        fault = arguments[place + 1]
        del arguments[place : place + 2]
    port = int(arguments[arguments.index("--port") + 1])
    if fault == "hangs at start":
        time.sleep(3600)
    if fault == "eats memory":
        resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))
        bytearray(2**40)
    if fault == "floods its log":
        for _ in range(_FLOODS):
            os.write(1, _FLOOD)
    if fault == "serves rubbish":
        http.server.HTTPServer(("127.0.0.1", port), _Rubbish).serve_forever()
    if fault in ("hangs under load", "dies under load"):
        _serve_until(port, arguments, signal.SIGSTOP if fault.startswith("hangs") else signal.SIGKILL)
    if fault == "leaves children":
        sys.argv[1:] = arguments
        hostile_engine.main()
    os.execv(sys.executable, [sys.executable, "-m", "tuner.engines.simulator", *arguments])


def _serve_until(port: int, arguments: list[str], number: signal.Signals) -> NoReturn:
    """Serves, and some time after the first answer sends the server a signal."""
    server = subprocess.Popen([sys.executable, "-m", "tuner.engines.simulator", *arguments])
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=1).close()
            break
        except OSError:
            time.sleep(0.1)
    time.sleep(2.0)
    server.send_signal(number)
    server.wait()
    os.kill(os.getpid(), number)
    sys.exit(1)


class _Rubbish(http.server.BaseHTTPRequestHandler):
    """Answers everything with 200 and nonsense."""

    def _answer(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"\x00\xff{not json")

    do_GET = do_POST = _answer

    def log_message(self, *anything: Any) -> None:
        """Says nothing."""


if __name__ == "__main__":
    main()
