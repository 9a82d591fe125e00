"""SGLang: its command line, what its server says of itself, and the signs of its failures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuner.engines import container
from tuner.engines.base import Config, RunningEngine, ServerInfo
from tuner.engines.flags import ASK, Flags, installed_flags
from tuner.engines.server import HOST, Sign, call, launched
from tuner.errors import EngineUnavailable
from tuner.failures import Cause, Failure, Stage, TrialFailed
from tuner.results import data_home
from tuner.task import Task

# In this order: the end of a log is generic ("Received sigquit from a child process", then SIGKILL), so
# exit code −9 alone proves nothing; the cause stands further up. docs/failures.md says where each line
# comes from (SGLang 0.5.23, torch 2.13).
SIGNS = (
    Sign.of(r"error: (unrecognized arguments|argument |ambiguous option)", Cause.INVALID_FLAGS),
    Sign.of(r"(?i)address already in use", Cause.PORT_TAKEN),
    # NCCL reports memory that is short as an error of its own, so memory stands before the driver;
    # DeepGEMM's "reducing max_m to avoid out of memory" is no failure.
    Sign.of(r"OutOfMemoryError|(?<!avoid )out of memory|ALLOC_FAILED", Cause.OUT_OF_MEMORY),
    Sign.of(r"Not enough memory|leave no GPU memory|can't allocate memory", Cause.OUT_OF_MEMORY),
    Sign.of(r"NCCL error|nccl(System|UnhandledCuda|Remote|Internal)Error", Cause.DRIVER),
    Sign.of(r"no NVIDIA driver|driver version is insufficient|[Nn]o CUDA-capable device", Cause.DRIVER),
    Sign.of(r"CUDA driver initialization failed|Can't initialize NVML|uncorrectable .*ECC", Cause.DRIVER),
    Sign.of(r"CUDA error: (unknown error|initialization error|.*busy or unavailable)", Cause.DRIVER),
    Sign.of(r"is not a valid model identifier|Repo id must be in the form", Cause.MODEL_NOT_FOUND),
    Sign.of(r"RepositoryNotFound|Repository Not Found|GatedRepoError", Cause.MODEL_NOT_FOUND),
    Sign.of(
        r"couldn't find them in the cached files|does not appear to have a file named", Cause.MODEL_NOT_FOUND
    ),
    Sign.of(r"Cannot find any model weights|Can't load the configuration of", Cause.MODEL_NOT_FOUND),
    Sign.of(r"watchdog timeout|Watchdog caught collective operation timeout", Cause.HANG),
    Sign.of(r"is not divisible|must be divisible", Cause.INVALID_FLAGS),
    Sign.of(r"exceeds the maximum allowed length|greater than the derived context", Cause.INVALID_FLAGS),
    Sign.of(r"^\[.*\] Subprocess \S+ \(pid=\d+\) crashed", Cause.CRASH),  # in mid-log, by SGLang's watcher
)
_IMAGE = "lmsysorg/sglang"
_GPU_FACTORS = (  # each with the other spelling that SGLang takes
    ("tp-size", "tensor-parallel-size"),
    ("pp-size", "pipeline-parallel-size"),
    ("dp-size", "data-parallel-size"),
)
_OURS = {  # flags that this adapter gives, or whose effect its client would not survive
    **dict.fromkeys(("model-path", "model"), "comes from model.id_or_path"),
    "served-model-name": "comes from benchmark.model_name",
    **dict.fromkeys(("host", "port"), "is chosen for each trial"),
    **dict.fromkeys(("api-key", "ssl-certfile"), "the load client speaks plain HTTP without a key"),
}
_SECRET = re.compile(r"key|token$|password|secret", re.IGNORECASE)  # of arguments that are not recorded
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
    """The `sglang.launch_server` of an installed SGLang, or of its container image where there is none."""

    name = "sglang"
    simulated = False
    module = "sglang.launch_server"

    def __init__(self, task: Task) -> None:
        self.task = task
        self.python = task.engine.python or sys.executable
        self._known: tuple[Flags | None] | None = None  # asked once, at the first check

    def version(self) -> str:
        """The installed version, or the tag of the image that is run in its place."""
        if installed := self._installed():
            return installed
        missing = f"sglang is not installed for {self.python}"
        remedy = "`pip install sglang` there, or name the interpreter that has it in the task's engine.python"
        if self.task.runtime_image_tag is None:
            raise EngineUnavailable(f"{missing}: {remedy} (or try --engine simulator)")
        if isinstance(found := container.runtime(), str):
            raise EngineUnavailable(f"{missing}, and {found}: {remedy}, or start docker or podman")
        return self.task.runtime_image_tag

    def _installed(self) -> str | None:
        """The version that is installed for `engine.python`; None where there is none."""
        command = [self.python, "-c", _VERSION]
        try:
            asked = subprocess.run(
                command, env=self._env(), capture_output=True, text=True, timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineUnavailable(f"sglang: engine.python cannot be run: {error}") from error
        return asked.stdout.strip() if asked.returncode == 0 else None

    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.task.engine.env}

    def gpus(self, config: Config) -> int:
        flags = {**self.task.engine.args, **config}
        if flags.get("device") == "cpu":
            return 0
        tp, pp, dp = (_first_number(flags, names) for names in _GPU_FACTORS)
        return tp * pp * (1 if flags.get("enable-dp-attention") else dp)  # there dp lies within tp

    def cpus(self, config: Config) -> int:
        return 1  # the load generator's: the server's own threads mostly wait for the GPU

    def check(self, config: Config) -> None:
        """Refuses flags that the installed version's own parser would refuse."""
        flags = {**self.task.engine.args, **config}
        for flag in flags.keys() & _OURS.keys():
            raise TrialFailed(Failure(Stage.CHECK, Cause.INVALID_FLAGS, f"argument --{flag}: {_OURS[flag]}"))
        if self._known is None:
            self._known = (self._flags(),)
        if (known := self._known[0]) is not None:
            known.check(flags)

    def _flags(self) -> Flags | None:
        """What the parser accepts; None where it cannot be asked, and the start will tell."""
        version, folder = self.version(), data_home() / "cache"
        if (found := self._container(())) is None:
            command, key = [self.python], (self.python, version)
        elif (image := container.image_id(found.runtime, found.image)) is None:
            return None  # to be pulled first, which takes minutes
        else:
            command, key = found.command(["python3"], container.new_name(self.name)), (found.image, image)
        command += ["-c", ASK, self.module, "--help"]
        return installed_flags(command, env=self._env(), key=(self.module, *key), folder=folder)

    def launch_command(self, config: Config) -> list[str]:
        flags = {**self.task.engine.args, **config}
        return self._argv("python", self.module, flags, "0.0.0.0", 30000)  # noqa: S104  of the user's deployment

    def _argv(self, python: str, module: str, flags: Config, host: str, port: int) -> list[str]:
        return [
            *(python, "-m", module, "--model-path", self.task.model.id_or_path),
            *("--served-model-name", self.task.served_model_name, "--host", host, "--port", str(port)),
            *flag_arguments(flags),
        ]

    def _container(self, gpu_ids: Sequence[str] | None) -> container.Container | None:
        """The container to run in; None where SGLang is installed, or no image is named."""
        tag = self.task.runtime_image_tag
        if tag is None or self.simulated or self._installed():
            return None
        found = container.runtime()
        if isinstance(found, str):
            raise EngineUnavailable(f"sglang is not installed for {self.python}, and {found}")
        env, cache = self._env(), container.hub_cache(self._env())
        passed = [name for name in ("HF_TOKEN", "HF_HOME") if name in env]
        return container.Container(
            runtime=found,
            image=f"{_IMAGE}:{tag}",
            gpu_ids=gpu_ids,
            folders=container.paths_among([self.task.model.id_or_path, *self.task.engine.args.values()]),
            cache=cache,
            variables=sorted({*self.task.engine.env, *passed, *(["HF_HOME"] if cache else [])}),
        )

    @contextmanager
    def launch(
        self, config: Config, *, gpu_ids: Sequence[str], log_path: Path, timeout_s: float
    ) -> Iterator[RunningEngine]:
        flags = {**self.task.engine.args, **config}
        env, model = self._env(), self.task.served_model_name
        given = list(gpu_ids) or None if self.gpus(config) else []
        box = self._container(given)
        name = container.new_name(self.name)
        if box is None and gpu_ids:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_ids)
        elif box is not None and box.cache is not None:
            env["HF_HOME"] = str(box.cache)

        def argv(port: int) -> list[str]:
            if box is None:
                return self._argv(self.python, self.module, flags, HOST, port)
            return box.command(self._argv("python3", self.module, flags, HOST, port), name)

        with launched(
            argv,
            env=env,
            log_path=log_path,
            timeout_s=timeout_s,
            model=model,
            signs=SIGNS if box is None else (*container.SIGNS, *SIGNS),
            then=() if box is None else box.removal(name),
        ) as server:
            server.flush_paths = ("flush_cache?timeout=20",)  # waits for requests that were cut off
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
    args = {
        key.replace("_", "-"): value
        for key, value in said.items()
        if _is_plain(value) and not (value and isinstance(value, str) and _SECRET.search(key))
    }
    capacity = said.get("max_total_num_tokens")
    if capacity is None:
        states = said.get("internal_states") or [{}]
        capacity = states[0].get("max_total_num_tokens") if isinstance(states[0], dict) else None
    return ServerInfo(str(said.get("version", "")), int(capacity) if capacity else None, args)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _first_number(flags: Config, names: Sequence[str]) -> int:
    """The value of the first of `names` that is given, 1 where none is (or is no number, see `check`)."""
    given = (flags[name] for name in names if name in flags)
    return next((value for value in given if isinstance(value, int) and value >= 1), 1)
