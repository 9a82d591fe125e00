"""An engine that is a Python package: run by an interpreter, by a command, or in its container image.

A subclass says how a configuration becomes arguments and what its server tells of itself. Where the engine
is found, how its parser is asked and how it is started is the same for all.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

from tuner.engines import container
from tuner.engines.base import DEPLOYED, DEPLOYED_PORT, Config, RunningEngine, ServerInfo, Value
from tuner.engines.flags import ASK, Flags, installed_flags
from tuner.engines.server import HOST, Server, Sign, launched, on_loopback
from tuner.errors import EngineUnavailable, TaskError
from tuner.failures import Cause, Failure, Stage, TrialFailed
from tuner.loopback import unproxied
from tuner.results import data_home
from tuner.secrets import resolved
from tuner.task import Task
from tuner.task.checks import size_problems

_VERSION = "import importlib.metadata as m; print(m.version({!r}))"
_FROM_OUTSIDE = ("HF_TOKEN", "HF_HOME")  # what a container is given of the surrounding environment


def refused(detail: str) -> TrialFailed:
    """A configuration that is known to be impossible before anything is started."""
    return TrialFailed(Failure(Stage.CHECK, Cause.INVALID_FLAGS, detail))


def size_in(value: Value) -> int:
    """The ranks that a size stands for; 1 where it is not given, or is no number (which is refused)."""
    text = str(value)
    return max(1, int(text)) if text.isdecimal() else 1


def installed_version(python: Sequence[str], package: str, env: Mapping[str, str]) -> str | None:
    """The version of `package` for the interpreter that `python` runs; None where it has none.

    EngineUnavailable where there is no such program.
    """
    command = [*python, "-c", _VERSION.format(package)]
    try:
        asked = subprocess.run(
            command, env=env, capture_output=True, text=True, errors="replace", timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineUnavailable(f"cannot be run: {error}") from error
    return asked.stdout.strip() if asked.returncode == 0 else None


class PackagedEngine(ABC):
    """What SGLang and vLLM have in common.

    `name` is the package's as well, `serve` what `python -m` runs, `deployed` what a user runs, `image` the
    repository of its container images, `ours` the flags that a task may not give, with the reason. `sizes`
    are those of its `gpu_flags` that are integers from 1.
    """

    name: ClassVar[str]
    serve: ClassVar[tuple[str, ...]]
    deployed: ClassVar[tuple[str, ...]]
    image: ClassVar[str]
    ours: ClassVar[Mapping[str, str]]
    sizes: ClassVar[Collection[str]]
    gpu_flags: ClassVar[Collection[str]]
    signs: ClassVar[Sequence[Sign]]
    flush_paths: ClassVar[Sequence[str]]
    environment: ClassVar[Mapping[str, str]] = {}  # unless the surroundings or the task say otherwise
    simulated = False

    def __init__(self, task: Task) -> None:
        if problems := size_problems(task, self.sizes):
            raise TaskError(task.task_name or "task", problems)
        self.task = task
        python = task.engine.python or sys.executable
        self.command = tuple(task.engine.command or (python, "-m", *self.serve))
        self._known: tuple[Flags | None] | None = None  # asked once, at the first check

    # --- for the subclass ---------------------------------------------------------------------------

    @abstractmethod
    def gpus(self, config: Config) -> int:
        """GPUs that this configuration needs."""

    @abstractmethod
    def arguments(self, config: Config, host: str, port: int) -> list[str]:
        """What follows the command that serves."""

    def given(self, config: Config) -> Config:
        """All flags, the fixed ones too, as they stand on the command line."""
        return {**self.task.engine.args, **config}

    @abstractmethod
    def info(self, server: Server) -> ServerInfo:
        """What the running server says of itself."""

    # --- where it is found --------------------------------------------------------------------------

    def version(self) -> str:
        """The installed version, or the tag of the image that is run in its place."""
        if installed := self._installed():
            return installed
        if self._python is None:
            return f"run by {shlex.join(self.command)}"
        missing = f"{self.name} is not installed for {shlex.join(self._python)}"
        remedy = f"`pip install {self.name}` there, or name in engine.python an interpreter that has it"
        if self.task.runtime_image_tag is None:
            raise EngineUnavailable(f"{missing}: {remedy} (or try --engine simulator)")
        if isinstance(found := container.runtime(), str):
            raise EngineUnavailable(f"{missing}, and {found}: {remedy}, or start docker or podman")
        return self.task.runtime_image_tag

    @property
    def _python(self) -> tuple[str, ...] | None:
        """The words that run the engine's interpreter; None where the command is no `... -m MODULE`."""
        module = ("-m", *self.serve)
        return self.command[: -len(module)] if self.command[-len(module) :] == module else None

    def _installed(self) -> str | None:
        """The version that is installed; None where there is none, or where the command does not tell."""
        key = "engine.command" if self.task.engine.command else "engine.python"
        program = self.command[0]
        if self._python is None:
            if shutil.which(program, path=self._env().get("PATH")) is None:
                raise EngineUnavailable(f"{self.name}: {key} cannot be run: no program {program!r}")
            return None
        try:
            return installed_version(self._python, self.name, self._env())
        except EngineUnavailable as error:
            raise EngineUnavailable(f"{self.name}: {key} {error}") from error

    def _env(self) -> dict[str, str]:
        return unproxied({**self.environment, **os.environ, **resolved(self.task.engine.env, os.environ)})

    def _container(self, gpu_ids: Sequence[str] | None) -> container.Container | None:
        """The container to run in; None where the engine is installed or run by a command of the task."""
        tag = self.task.runtime_image_tag
        if tag is None or self.task.engine.command or self._installed():
            return None
        found = container.runtime()
        if isinstance(found, str):
            raise EngineUnavailable(f"{self.name} is not installed for {self.command[0]}, and {found}")
        env, cache = self._env(), container.hub_cache(self._env())
        passed = [name for name in _FROM_OUTSIDE if name in env]
        return container.Container(
            runtime=found,
            image=f"{self.image}:{tag}",
            gpu_ids=gpu_ids,
            folders=container.paths_among([self.task.model.id_or_path, *self.task.engine.args.values()]),
            cache=cache,
            variables=sorted(
                {*self.environment, *self.task.engine.env, *passed, *(["HF_HOME"] if cache else [])}
            ),
        )

    # --- its flags ----------------------------------------------------------------------------------

    def cpus(self, config: Config) -> int:
        """The load generator's: the server's own threads mostly wait for the GPU."""
        return 1

    def check(self, config: Config) -> None:
        """Refuses flags that the installed version's own parser would refuse, and those that are ours."""
        given = self.given(config)
        for flag in given:
            for ours, why in self.ours.items():
                if ours.startswith(flag.replace("_", "-")):  # or an abbreviation, which argparse takes
                    raise refused(f"argument --{flag}: {why}")
        if self._known is None:
            self._known = (self._flags(),)
        if (known := self._known[0]) is not None:
            known.check(given)

    def _flags(self) -> Flags | None:
        """What the parser accepts; None where it cannot be asked, and the start will tell."""
        version, folder = self.version(), data_home() / "cache"
        if self._python is None:
            return None
        if (found := self._container(())) is None:
            command, key = list(self._python), (*self._python, version)
        elif (image := container.image_id(found.runtime, found.image)) is None:
            return None  # to be pulled first, which takes minutes
        else:
            command, key = found.command(["python3"], container.new_name(self.name)), (found.image, image)
        command += ["-c", ASK, *self.serve, "--help"]
        return installed_flags(command, env=self._env(), key=(*self.serve, *key), folder=folder)

    # --- its start ----------------------------------------------------------------------------------

    def launch_command(self, config: Config) -> list[str]:
        """As a user serves it for good; see `Engine.launch_command`."""
        return [*self.deployed, *self.arguments(config, DEPLOYED, DEPLOYED_PORT)]

    def launch(
        self, config: Config, *, gpu_ids: Sequence[str], log_path: Path, timeout_s: float
    ) -> AbstractContextManager[RunningEngine]:
        """See `Engine.launch`."""

        def arguments(port: int) -> list[str]:
            return self.arguments(config, HOST, port)

        return self._launched(arguments, self.gpus(config), gpu_ids, log_path, timeout_s)

    def launch_exported(
        self, argv: Sequence[str], *, gpus: int, gpu_ids: Sequence[str], log_path: Path, timeout_s: float
    ) -> AbstractContextManager[RunningEngine]:
        """See `StartsExported`."""
        exported = self.exported_arguments(argv)
        return self._launched(partial(on_loopback, exported), gpus, gpu_ids, log_path, timeout_s)

    def exported_arguments(self, argv: Sequence[str]) -> list[str]:
        """What follows the command that serves in a `launch_command`."""
        if tuple(argv[: len(self.deployed)]) != self.deployed:
            raise refused(f"the command does not begin with {shlex.join(self.deployed)}")
        return list(argv[len(self.deployed) :])

    @contextmanager
    def _launched(
        self,
        arguments: Callable[[int], list[str]],
        gpus: int,
        gpu_ids: Sequence[str],
        log_path: Path,
        timeout_s: float,
    ) -> Iterator[RunningEngine]:
        env = self._env()
        box = self._container(list(gpu_ids) or None if gpus else [])
        name = container.new_name(self.name)
        if box is None and gpu_ids:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_ids)
            env.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as NVML counts, which looks at them as well
        elif box is not None and box.cache is not None:
            env["HF_HOME"] = str(box.cache)

        def argv(port: int) -> list[str]:
            if box is None:
                return [*self.command, *arguments(port)]
            return box.command(["python3", "-m", *self.serve, *arguments(port)], name)

        with launched(
            argv,
            env=env,
            log_path=log_path,
            timeout_s=timeout_s,
            model=self.task.served_model_name,
            signs=self.signs if box is None else (*container.SIGNS, *self.signs),
            then=() if box is None else box.removal(name),
        ) as server:
            server.flush_paths = self.flush_paths
            server.info = self.info(server)
            yield server
