"""SGLang: its command line, what its server says of itself, and the signs of its failures."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuner.engines.base import Config, RunningEngine, ServerInfo
from tuner.engines.server import HOST, Sign, call, launched
from tuner.errors import EngineUnavailable
from tuner.failures import Cause
from tuner.task import Task

# In this order: the end of a log is generic ("Received sigquit from a child process", then SIGKILL), so
# exit code −9 alone proves nothing; the cause stands further up. Lines of SGLang 0.5.23.
SIGNS = (
    Sign.of(r"error: (unrecognized arguments|argument |ambiguous option)", Cause.INVALID_FLAGS),
    Sign.of(r"address already in use", Cause.PORT_TAKEN),
    Sign.of(r"OutOfMemoryError|out of memory", Cause.OUT_OF_MEMORY),
    Sign.of(r"Not enough memory|leave no GPU memory", Cause.OUT_OF_MEMORY),
    Sign.of(r"is not a valid model identifier|Repo id must be in the form", Cause.MODEL_NOT_FOUND),
    Sign.of(r"is not divisible|must be divisible", Cause.INVALID_FLAGS),
    Sign.of(r"exceeds the maximum allowed length", Cause.INVALID_FLAGS),
)
_GPU_FACTORS = ("tp-size", "pp-size", "dp-size")
_VERSION = "import importlib.metadata as m; print(m.version('sglang'))"


def flag_arguments(config: Config) -> list[str]:
    """`{"a": 1, "b": True, "c": False, "d": None}` as argv: `--a 1 --b`."""
    argv: list[str] = []
    for flag, value in config.items():
        if value is True:
            argv.append(f"--{flag}")
        elif value is not None and value is not False:
            argv += [f"--{flag}", str(value)]
    return argv


class SGLangEngine:
    """The `sglang.launch_server` of an installed SGLang."""

    name = "sglang"
    simulated = False
    module = "sglang.launch_server"

    def __init__(self, task: Task) -> None:
        self.task = task
        self.python = task.engine.python or sys.executable

    def version(self) -> str:
        try:
            asked = subprocess.run(
                [self.python, "-c", _VERSION], capture_output=True, text=True, timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineUnavailable(f"sglang: engine.python cannot be run: {error}") from error
        if asked.returncode:
            raise EngineUnavailable(
                f"sglang is not installed for {self.python}: `pip install sglang` there, or name the "
                "interpreter that has it in the task's engine.python (or try --engine simulator)"
            )
        return asked.stdout.strip()

    def gpus(self, config: Config) -> int:
        flags = {**self.task.engine.args, **config}
        count = 1
        for flag in _GPU_FACTORS:
            count *= int(flags.get(flag) or 1)
        return count

    def check(self, config: Config) -> None:
        """SGLang itself says what is wrong, when it starts."""

    def launch_command(self, config: Config) -> list[str]:
        flags = {**self.task.engine.args, **config}
        return self._argv("python", self.module, flags, "0.0.0.0", 30000)  # noqa: S104  of the user's deployment

    def _argv(self, python: str, module: str, flags: Config, host: str, port: int) -> list[str]:
        return [
            *(python, "-m", module, "--model-path", self.task.model.id_or_path),
            *("--served-model-name", self.task.served_model_name, "--host", host, "--port", str(port)),
            *flag_arguments(flags),
        ]

    @contextmanager
    def launch(
        self, config: Config, *, gpu_ids: Sequence[str], log_path: Path, timeout_s: float
    ) -> Iterator[RunningEngine]:
        def argv(port: int) -> list[str]:
            return self._argv(self.python, self.module, {**self.task.engine.args, **config}, HOST, port)

        env = {**os.environ, **self.task.engine.env}
        if gpu_ids:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_ids)
        model = self.task.served_model_name
        with launched(
            argv, env=env, log_path=log_path, timeout_s=timeout_s, model=model, signs=SIGNS
        ) as server:
            server.info = self._info(server.base_url)
            yield server

    def _info(self, base_url: str) -> ServerInfo:
        for path in ("server_info", "get_server_info"):  # the second is its name before 0.5.10
            try:
                said = call(f"{base_url}/{path}")
            except OSError:
                continue
            if isinstance(said, dict):
                return _server_info(said)
        return ServerInfo(version="")


def _server_info(said: Mapping[str, Any]) -> ServerInfo:
    args = {key.replace("_", "-"): value for key, value in said.items() if _is_plain(value)}
    capacity = said.get("max_total_num_tokens")
    if capacity is None:
        states = said.get("internal_states") or [{}]
        capacity = states[0].get("max_total_num_tokens") if isinstance(states[0], dict) else None
    return ServerInfo(str(said.get("version", "")), int(capacity) if capacity else None, args)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
