"""An engine in a container of its own image, where it is not installed: docker or podman.

Builds argv and asks the runtime's command; knows nothing of any engine. A container is no descendant of
the command that runs it, so its removal is a command of its own, which the watchdog runs at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

from tuner.engines.server import Sign
from tuner.failures import Cause

RUNTIMES = ("docker", "podman")
LABEL = "inference-autotuner"  # of every container: `docker ps --filter label=inference-autotuner`
_ANSWER_S = 30.0
# Before an engine's own: the runtime's command failed, and no engine has run. Lines of docker 20 to 28,
# podman 4 and 5 and nvidia-container-toolkit 1.17.
SIGNS = (
    Sign.of(r"nvidia-container-cli: |could not select device driver|unresolvable CDI devices", Cause.DRIVER),
    Sign.of(r"^(docker: |Error: |Error response from daemon: )", Cause.INTERNAL),
)


@dataclass(frozen=True)
class Runtime:
    """A container runtime that answers: `docker` or `podman`, and the path of its command."""

    name: str
    path: str


def runtime() -> Runtime | str:
    """The first runtime that answers; a few words on why there is none."""
    return _find(os.environ.get("PATH", ""))


@cache
def _find(path: str) -> Runtime | str:
    why = f"no container runtime ({' or '.join(RUNTIMES)}) is on PATH"
    for name in RUNTIMES:
        found = shutil.which(name, path=path)
        if found is None:
            continue
        if _answer([found, "info"]) is not None:
            return Runtime(name, found)
        why = f"the container runtime {name} does not answer `{name} info` (is its daemon running?)"
    return why


def _answer(command: Sequence[str]) -> str | None:
    """What a command prints; None where it fails or does not end."""
    try:
        asked = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() if asked.returncode == 0 else None


def image_id(found: Runtime, image: str) -> str | None:
    """The id of `image`, which a tag may name another tomorrow; None where it is not on this machine."""
    return _answer([found.path, "image", "inspect", "--format", "{{.Id}}", image])


@dataclass(frozen=True)
class Container:
    """One container to run: its image, the GPUs it sees, and the folders and variables it is given.

    `gpu_ids` None gives it every GPU, an empty sequence none. `folders` are mounted where they are, for
    reading, `cache` (of downloaded models) for writing. Of `variables` only the names stand on the command
    line; their values are those of the command's environment, so that no process list shows a secret.
    """

    runtime: Runtime
    image: str
    gpu_ids: Sequence[str] | None = None
    folders: Sequence[Path] = ()
    cache: Path | None = None
    variables: Sequence[str] = ()

    def command(self, argv: Sequence[str], name: str) -> list[str]:
        """The argv that runs `argv` in a new container called `name` and ends when it ends."""
        return [
            *(self.runtime.path, "run", "--rm", "--name", name, "--label", LABEL),
            *_gpu_words(self.runtime, self.gpu_ids),
            *("--network", "host", "--ipc", "host"),
            *(word for folder in self.folders for word in ("-v", f"{folder}:{folder}:ro")),
            *(() if self.cache is None else ("-v", f"{self.cache}:{self.cache}")),
            *(word for variable in self.variables for word in ("-e", variable)),
            *("--entrypoint", argv[0], self.image),  # an image may have one of its own
            *argv[1:],
        ]

    def removal(self, name: str) -> list[str]:
        """The argv that ends and removes the container called `name`, whatever it does."""
        return [self.runtime.path, "rm", "-f", name]


def new_name(engine: str) -> str:
    """A name that no other container has."""
    return f"tuner-{engine}-{uuid4().hex}"


def _gpu_words(found: Runtime, gpu_ids: Sequence[str] | None) -> list[str]:
    if gpu_ids is None:
        return ["--gpus", "all"] if found.name == "docker" else ["--device", "nvidia.com/gpu=all"]
    if not gpu_ids:
        return []
    if found.name == "docker":
        return ["--gpus", f'"device={",".join(gpu_ids)}"']  # docker reads CSV: the quotes keep the commas
    return [word for gpu in gpu_ids for word in ("--device", f"nvidia.com/gpu={gpu}")]


def paths_among(values: Iterable[object]) -> list[Path]:
    """The absolute paths among `values` that are on this machine: a local model, not a hub id."""
    paths = {Path(value) for value in values if isinstance(value, str) and value.startswith("/")}
    return sorted(path for path in paths if path.exists())


def hub_cache(env: Mapping[str, str]) -> Path | None:
    """The Hugging Face cache of this user, where there is one: models are not downloaded again."""
    home = Path(env.get("HF_HOME") or Path.home() / ".cache" / "huggingface").absolute()
    return home if home.is_dir() else None
