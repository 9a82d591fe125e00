"""A server's process: started under the watchdog, its log tailed, its whole tree ended on exit."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tuner.secrets import redacted, secret_names

_WATCHDOG = Path(__file__).with_name("watchdog.py")
_TAIL_BYTES = 256 * 1024  # eight ranks that fail print a traceback each, and the cause stands in the first
_THEN_LIMIT_S = 200.0  # the watchdog tries three times
LOG_BYTES = 64 * 2**20  # of a log, and then its middle is cut out
GRACE_S = 10.0  # SGLang with a stream in flight leaves within 10 s of SIGTERM


class EngineProcess:
    """Runs `argv` without a shell, both its output streams going to `log_path`.

    A context manager: on exit the whole process tree is gone, SIGTERM first, SIGKILL after `grace_s`
    seconds. It is gone as well when this process dies by SIGKILL (see `watchdog`). `then` is a command
    that is run after that, for what is not below the process: a container. The log never grows much beyond
    `log_bytes`, and at the end it holds none of the environment's secrets. Raises OSError where the program
    cannot be started; its `filename` is the program where that is at fault.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log_path: Path,
        grace_s: float = GRACE_S,
        log_bytes: int = LOG_BYTES,
        then: Sequence[str] = (),
    ) -> None:
        self.log_path = log_path
        self._kernel_kills = _kernel_kills()
        self._env = dict(env)
        self._grace_s = grace_s
        self._then = tuple(then)
        self._orphaned = False  # the watchdog was killed before it could say how the command ended
        self._exit_code: int | None = None
        self._said = b""
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = log_path.stat().st_size if log_path.exists() else 0
        alive_read, self._alive = os.pipe()  # closing our end tells the watchdog to end the tree
        self._status, status_write = os.pipe()
        try:
            with log_path.open("a+b") as log:  # the watchdog reads it too
                watchdog = [sys.executable, "-I", "-S", str(_WATCHDOG)]
                watchdog += [str(grace_s), str(status_write), str(log_bytes), ",".join(secret_names(env))]
                detached = subprocess.Popen(
                    [*watchdog, str(len(then)), *then, *argv],
                    stdin=alive_read,
                    stdout=log,
                    stderr=log,
                    env=self._env,
                    pass_fds=[status_write],
                    start_new_session=True,
                )
        except BaseException:
            os.close(self._alive)
            os.close(self._status)
            raise
        finally:
            os.close(alive_read)
            os.close(status_write)
        detached.wait()
        word, _, rest = self._next_line(timeout_s=30.0).partition(" ")
        if word != "pid":
            self._close()
            if word != "error":
                raise OSError("the watchdog did not start")
            number, _, reason = rest.partition(" ")
            raise OSError(int(number), reason, argv[0])
        self.pid = int(rest)

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> int | None:
        """Ends the whole tree and waits until it is gone; returns the exit code (negative: the signal)."""
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1
            self._read_exit(timeout_s=self._grace_s + 30.0 + (_THEN_LIMIT_S if self._then else 0.0))
            self._next_line(timeout_s=5.0)  # its end: the watchdog itself is gone
            self._close()
            if self._orphaned and self._then:
                with suppress(OSError, subprocess.TimeoutExpired):
                    subprocess.run(self._then, capture_output=True, timeout=_THEN_LIMIT_S, check=False)
        return self._exit_code

    def poll(self) -> int | None:
        """The exit code once the tree has ended (negative: the signal); None while it runs."""
        if self._exit_code is None and self._alive >= 0:
            self._read_exit(timeout_s=0.0)
        return self._exit_code

    def starved(self) -> bool:
        """Whether the kernel has killed a process for lack of memory since this one was started.

        It tells of the whole host, so it is evidence only beside an end that nothing else explains.
        """
        return _kernel_kills() > self._kernel_kills

    def log(self) -> str:
        """The last 256 KiB that this process wrote to its log, without its environment's secrets."""
        with self.log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - _TAIL_BYTES))
            return redacted(log.read().decode(errors="replace"), self._env)

    def _read_exit(self, timeout_s: float) -> None:
        word, _, code = self._next_line(timeout_s).partition(" ")
        if word == "exit":
            self._exit_code = int(code)
        elif word == "gone" and self._exit_code is None:  # killed, and with it the command
            self._exit_code = -signal.SIGKILL
            self._orphaned = True

    def _next_line(self, timeout_s: float) -> str:
        """The watchdog's next line; empty where none came in time, `gone` where the watchdog is."""
        while b"\n" not in self._said:
            if not select.select([self._status], [], [], timeout_s)[0]:
                return ""
            chunk = os.read(self._status, 4096)
            if not chunk:
                return "gone"
            self._said += chunk
        line, _, self._said = self._said.partition(b"\n")
        return line.decode(errors="replace")

    def _close(self) -> None:
        os.close(self._status)
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1


def _kernel_kills() -> int:
    """How many processes the kernel has killed for lack of memory; 0 where it does not say."""
    try:
        counters = Path("/proc/vmstat").read_text().split()
        return int(counters[counters.index("oom_kill") + 1])
    except (OSError, ValueError):
        return 0
