"""A server that runs already, as an engine whose launch starts nothing and whose end stops nothing.

Not in the registry: a task cannot name it, `tuner bench` makes one from a base URL.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from tuner.engines.base import Config, ServerInfo
from tuner.engines.server import call
from tuner.errors import UsageError
from tuner.task import Task

_TELLS_VERSION = (
    "server_info",
    "get_server_info",
    "version",
    "props",
)  # SGLang, its past, vLLM, llama.cpp
_LOCKED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_NO_ANSWER = (OSError, ValueError)  # nobody there, or nobody who speaks HTTP


@dataclass
class AttachedServer:
    """Another's server under load (a `RunningEngine`)."""

    base_url: str
    model: str
    info: ServerInfo
    start_s: float = math.nan  # it was started by another
    api_key: str = field(default="", repr=False)

    def alive(self) -> bool:
        """True: there is no process to look at; a dead server shows in its requests."""
        return True

    def raise_if_failed(self) -> None:
        """Nothing, for the same reason."""

    def flush_cache(self) -> None:
        """Nothing: the cache is its owner's."""


class Attached:
    """The engine of a server at `base_url` (with or without `/v1`) on so many GPUs, 0 where unknown.

    A server that is protected gets its `api_key` with every request; it is kept nowhere else.
    """

    name = "server"
    gpu_flags = ()

    def __init__(self, task: Task, base_url: str, gpus: int = 0, api_key: str = "") -> None:
        if api_key and task.benchmark.tool == "genai-bench":
            raise UsageError(
                "--api-key-env: genai-bench shows its key to all processes and writes it to disk"
            )
        self.base_url = _checked(base_url)
        self._api_key = api_key
        self.model = self._model(task, api_key)
        self.info = ServerInfo(self._version(api_key))
        self.simulated = self.info.version.startswith("simulator")
        self._gpus = gpus

    def _model(self, task: Task, api_key: str) -> str:
        """`benchmark.model_name`, else the one model that is served, else `model.id_or_path` if it is served.

        UsageError where no server answers, and where the choice is not clear.
        """
        url = f"{self.base_url}/v1/models"
        wanted = task.benchmark.model_name
        try:
            served = _ids(call(url, api_key=api_key))
        except HTTPError as error:
            if wanted and (api_key or error.code not in _LOCKED):  # it only does not list its models
                return wanted
            raise UsageError(f"{url} answers {error.code}; {_remedy(error.code)}") from error
        except _NO_ANSWER as error:
            raise UsageError(f"no server answers at {self.base_url}: {_reason(error)}") from error
        if wanted:
            return wanted
        if len(served) == 1:
            return served[0]
        if task.model.id_or_path in served:
            return task.model.id_or_path
        names = f"{len(served)} models ({', '.join(served[:5])})" if served else "no model by name"
        raise UsageError(f"{url} lists {names}; give benchmark.model_name in the task")

    def _version(self, api_key: str) -> str:
        for path in _TELLS_VERSION:
            try:
                said = call(f"{self.base_url}/{path}", api_key=api_key)
            except _NO_ANSWER:
                continue
            told = said.get("version") or said.get("build_info") if isinstance(said, dict) else None
            if isinstance(told, str):
                return told
        return ""

    def version(self) -> str:
        """What the server says of itself; empty where it says nothing."""
        return self.info.version

    def gpus(self, config: Config) -> int:
        """As many as the caller said."""
        return self._gpus

    def cpus(self, config: Config) -> int:
        """One, for the load generator."""
        return 1

    def check(self, config: Config) -> None:
        """Nothing: it runs."""

    def launch_command(self, config: Config) -> list[str]:
        """None: it is not known how it was started."""
        return []

    @contextmanager
    def launch(
        self, config: Config, *, gpu_ids: Sequence[str], log_path: Path, timeout_s: float
    ) -> Iterator[AttachedServer]:
        """The server as it stands; see `Engine.launch`."""
        yield AttachedServer(self.base_url, self.model, self.info, api_key=self._api_key)


def _checked(base_url: str) -> str:
    """`base_url` without a `/v1` or slashes at its end; UsageError for no http URL, or a password."""
    try:
        url = urlsplit(base_url)
        sound = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        sound = sound and not (url.query or url.fragment)
    except ValueError:
        sound = False
    if sound and "@" in url.netloc:
        raise UsageError(
            "--base-url: must hold no password, which results and process lists would show; use --api-key-env"
        )
    if not sound:
        raise UsageError(f"--base-url: must be http://host:port or https://host:port, got {base_url!r}")
    return base_url.rstrip("/").removesuffix("/v1").rstrip("/")


def _ids(said: Any) -> list[str]:
    """The models' names in an answer of `/v1/models`."""
    listed = said.get("data") if isinstance(said, Mapping) else None
    cards = listed if isinstance(listed, list) else []
    return [card["id"] for card in cards if isinstance(card, Mapping) and isinstance(card.get("id"), str)]


def _remedy(status: int) -> str:
    if status in _LOCKED:
        return "give --api-key-env with the variable that holds its key"
    return "give benchmark.model_name in the task"


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)
