"""A Ray head of the server's own, with the dashboard that takes jobs, all of it on loopback.

It is started as `ray start` does, not by `ray.init`, which cannot choose the port of the agent that starts
jobs: a second Ray on a machine would take none. It ends with this process, whatever ends that.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tuner.engines.process import EngineProcess
from tuner.errors import TunerError

_RAY = [sys.executable, "-m", "ray.scripts.scripts"]
_WITHIN_S = 120  # on a busy machine
_GRACE_S = 5.0
_STOP_WITHIN_S = 60  # a job, before Ray kills it: engines take seconds to leave their GPUs
_LONGEST = 107 - len("/tuner-12345678/pymp-12345678/listener-12345678")  # TMPDIR, for the sockets below it
_DASHBOARD_PORT = 8265  # Ray's own, where it is free


@contextmanager
def own_head(num_gpus: int | None) -> Iterator[str]:
    """Starts the head with `num_gpus` GPUs, real or not (None: those that Ray finds); its dashboard's URL.

    RAY_ADDRESS names it meanwhile. Its ports ask for Ray's token where RAY_AUTH_MODE is `token`, which Ray
    reads once, when it is first imported. TunerError where it does not start.
    """
    short = "/tmp" if Path("/tmp").is_dir() else None  # noqa: S108  sockets below it have a limit of 107 bytes
    with (
        tempfile.TemporaryDirectory(prefix="tuner-", dir=short, ignore_cleanup_errors=True) as folder,
        _temporary(folder) as temporary,
        ExitStack() as held,
    ):
        port, agent, dashboard = (_free_port(wanted, held) for wanted in (0, 0, _DASHBOARD_PORT))
        held.close()
        argv = [
            *(*_RAY, "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true"),
            *(f"--port={port}", f"--dashboard-agent-listen-port={agent}", f"--dashboard-port={dashboard}"),
            *(f"--temp-dir={folder}/ray", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
            *([] if num_gpus is None else [f"--num-gpus={num_gpus}"]),
        ]
        env = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WITHIN_S), **os.environ, "TMPDIR": temporary}
        _make_ray_token(env)
        log = Path(folder, "head.log")
        with EngineProcess(argv, env=env, log_path=log, grace_s=_GRACE_S) as head:
            _wait_for(head, port, dashboard)
            with _environment(RAY_ADDRESS=f"127.0.0.1:{port}"):
                yield f"http://127.0.0.1:{dashboard}"


def _temporary(folder: str) -> tempfile.TemporaryDirectory[str]:
    """The head's TMPDIR, since what Ray kills at the end leaves sockets there.

    It lies in the caller's own where that leaves sockets short enough, else below `folder`.
    """
    wanted = os.environ.get("TMPDIR", "")
    place = wanted if 0 < len(wanted) <= _LONGEST and Path(wanted).is_dir() else folder
    return tempfile.TemporaryDirectory(prefix="tuner-", dir=place, ignore_cleanup_errors=True)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Variables of this process meanwhile, which Ray reads; those that are set already stay as they are."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _make_ray_token(env: dict[str, str]) -> None:
    """Makes the token in ~/.ray, which Ray's ports ask for, where there is none yet."""
    command = [*_RAY, "get-auth-token", "--generate"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
    if done.returncode:
        raise TunerError(f"Ray makes no token: {done.stderr.strip()[-500:]}")


def _free_port(wanted: int, held: ExitStack) -> int:
    """`wanted` where it is free, else another; kept until `held` is left, so that no two are the same."""
    try:
        probe = held.enter_context(socket.create_server(("127.0.0.1", wanted)))
    except OSError:
        probe = held.enter_context(socket.create_server(("127.0.0.1", 0)))
    return int(probe.getsockname()[1])


def _wait_for(head: EngineProcess, *ports: int) -> None:
    deadline = time.monotonic() + _WITHIN_S
    for port in ports:
        while not _answers(port):
            if head.poll() is not None or time.monotonic() > deadline:
                raise TunerError(f"Ray did not start: {head.log().strip()[-1000:]}")
            time.sleep(0.2)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
