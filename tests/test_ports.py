"""Whose server listens on a port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.engines import ports, server
from tuner.engines.ports import listeners, taken_by_another
from tuner.failures import Cause, TrialFailed

LISTENER = """
import socket, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
time.sleep(60)
"""


def test_this_process_and_its_children_are_told_from_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
        assert listeners(port)
        assert not taken_by_another(os.getpid(), port)
        other = subprocess.Popen([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True)
        try:
            assert other.stdout is not None
            theirs = int(other.stdout.readline())
            assert not taken_by_another(other.pid, theirs)
            assert not taken_by_another(os.getpid(), theirs)  # it is a child
            assert taken_by_another(other.pid, port)
        finally:
            other.kill()
            other.wait()
    assert not taken_by_another(os.getpid(), port)  # nobody listens


def test_a_socket_closed_while_the_processes_are_looked_through_is_nobodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """llama.cpp listens for some milliseconds before it finds that its context does not fit."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def closing(pid: int) -> set[int]:
        listener.close()
        return {pid}

    monkeypatch.setattr(ports, "_tree", closing)
    assert listeners(port)
    assert not taken_by_another(os.getpid(), port)


def test_a_server_that_was_there_before_is_not_taken_for_the_one_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one started cannot bind and stays alive; the other one answers every probe."""
    module = [sys.executable, "-m", "tuner.engines.simulator", "--model-path", "llama-3.2-1b-instruct"]
    port = server.free_port()
    monkeypatch.setattr(server, "free_port", lambda: port)
    first = {"env": dict(os.environ), "timeout_s": 30.0, "model": "m", "signs": ()}

    def serve(number: int) -> list[str]:
        return [*module, "--port", str(number)]

    def idle(number: int) -> list[str]:
        return [sys.executable, "-c", "import time; time.sleep(60)"]

    with (
        server.launched(serve, log_path=tmp_path / "first.log", **first),  # type: ignore[arg-type]
        pytest.raises(TrialFailed) as taken,
        server.launched(idle, log_path=tmp_path / "second.log", **first),  # type: ignore[arg-type]
    ):
        pass
    assert taken.value.failure.cause is Cause.PORT_TAKEN
    assert "another server" in taken.value.failure.detail


def test_a_silent_listener_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside one, SGLang lives on for longer than a start may take: another port is tried at once."""
    free = server.free_port()
    module = [sys.executable, "-m", "tuner.engines.simulator", "--model-path", "llama-3.2-1b-instruct"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        taken = silent.getsockname()[1]
        ports = iter([taken, free])
        monkeypatch.setattr(server, "free_port", lambda: next(ports))
        idle = [sys.executable, "-c", "import time; time.sleep(600)"]
        with server.launched(
            lambda port: idle if port == taken else [*module, "--port", str(port)],
            env=dict(os.environ),
            log_path=tmp_path / "log",
            timeout_s=50.0,
            model="m",
            signs=(),
        ) as running:
            assert running.base_url.endswith(f":{free}")


REFUSES = """
import http.server, sys

class Refuses(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        said = b'{"message": "The model does not support\\nCompletions API"}'
        self.send_response(int(sys.argv[2]))
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Refuses).serve_forever()
"""


@pytest.mark.parametrize(
    ("status", "refused_s", "cause", "detail"),
    [
        (400, 0.5, Cause.CRASH, "answers a completion with"),
        (
            400,
            60.0,
            Cause.START_TIMEOUT,
            "no token was served within the start timeout; it answers",
        ),
        (
            503,
            0.5,
            Cause.START_TIMEOUT,
            "no token was served within the start timeout; it answers",
        ),
    ],
)
def test_a_server_that_refuses_the_first_completion_is_quoted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    refused_s: float,
    cause: Cause,
    detail: str,
) -> None:
    monkeypatch.setattr(server, "_REFUSED_S", refused_s)
    with (
        pytest.raises(TrialFailed) as failed,
        server.launched(
            lambda port: [sys.executable, "-c", REFUSES, str(port), str(status)],
            env=dict(os.environ),
            log_path=tmp_path / "log",
            timeout_s=6.0,
            model="m",
            signs=(),
        ),
    ):
        pass
    assert failed.value.failure.cause is cause
    said = '{"message": "The model does not support Completions API"}'
    assert failed.value.failure.detail == f"{detail} HTTP {status}: {said}"
