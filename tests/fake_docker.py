"""A `docker` for tests: a daemon that runs "containers" outside the tree of the command that asks for them.

`FakeDocker` is the daemon and writes the command to put on PATH. In a container the simulator stands for
SGLang, the stand-in of the tests for vLLM.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_STAND_INS = str(Path(__file__).parent / "stand_ins")
_IN_AN_IMAGE = {"python3": sys.executable, "sglang.launch_server": "tuner.engines.simulator"}
_COMMAND = """#!{python} -IS
import json, os, socket, sys
argv = sys.argv[1:]
values = dict(zip(argv, argv[1:]))
passed = [argv[i + 1] for i, word in enumerate(argv) if word == "-e"]
server = socket.socket(socket.AF_UNIX)
try:
    server.connect({address!r})
except OSError:
    sys.exit("Cannot connect to the Docker daemon. Is the docker daemon running?")
env = {{name: os.environ[name] for name in passed if name in os.environ}}
server.sendall(json.dumps({{"argv": argv, "env": env}}).encode() + b"\\n")
code = 1
for line in server.makefile("rb"):
    said = json.loads(line)
    os.write(1, said.get("out", "").encode())
    code = said.get("exit", code)
sys.exit(code)
"""


class FakeDocker:
    """The daemon: `calls` are the argv it was given, `environments` what each container was passed."""

    def __init__(self, folder: Path, *, images: tuple[str, ...] = (), name: str = "docker") -> None:
        self.calls: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.images = images
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        address = str(folder / "sock")
        command = self.bin / name
        command.write_text(_COMMAND.format(python=sys.executable, address=address))
        command.chmod(0o755)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Ends what runs; afterwards the daemon does not answer."""
        with contextlib.suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for name in list(self.running):
            self._remove(name)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                request = json.loads(client.makefile("rb").readline())
                self.calls.append(request["argv"])
                self._answer(client, request)

    def _answer(self, client: socket.socket, request: dict[str, Any]) -> None:
        verb, *words = request["argv"]
        if verb == "run":
            self.environments.append(request["env"])
            image = next(i for i, word in enumerate(words) if word.startswith(("lmsysorg/", "vllm/")))
            command = [words[words.index("--entrypoint") + 1], *words[image + 1 :]]
            command = [_IN_AN_IMAGE.get(word, word) for word in command]
            container = subprocess.Popen(
                command,
                cwd=ROOT,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": _STAND_INS, **request["env"]},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.running[words[words.index("--name") + 1]] = container
            threading.Thread(target=self._follow, args=(client, container), daemon=True).start()
            return
        if verb == "rm":
            self._remove(words[-1])
        known = verb != "image" or words[-1] in self.images
        _say(client, {"out": "sha256:1\n" if verb == "image" and known else ""})
        _say(client, {"exit": 0 if known else 1})
        client.close()

    def _follow(self, client: socket.socket, container: subprocess.Popen[bytes]) -> None:
        assert container.stdout is not None
        for line in container.stdout:
            _say(client, {"out": line.decode()})
        code = container.wait()
        _say(client, {"exit": code if code >= 0 else 128 - code})
        client.close()

    def _remove(self, name: str) -> None:
        if (container := self.running.pop(name, None)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(container.pid, signal.SIGKILL)
            container.wait()


def _say(client: socket.socket, what: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the command was killed
        client.sendall(json.dumps(what).encode() + b"\n")
