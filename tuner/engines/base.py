"""What an engine is: how a configuration becomes a running server, and what went wrong if not.

Knows nothing of Ray, of load or of scores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Value = bool | int | float | str | None
DEPLOYED, DEPLOYED_PORT = "0.0.0.0", 30000  # noqa: S104  where a user's deployment listens
Config = Mapping[str, Value]  # engine flags as the engine spells them, without leading dashes


@dataclass(frozen=True)
class ServerInfo:
    """What a running server says of itself, stored with the result.

    `effective_args` are the arguments as the server resolved them, `kv_tokens` the capacity of its
    KV cache in tokens (None where it does not say).
    """

    version: str
    kv_tokens: int | None = None
    effective_args: Mapping[str, Any] = field(default_factory=dict)


class RunningEngine(Protocol):
    """A server that has answered with a token and belongs to this trial."""

    base_url: str
    model: str
    info: ServerInfo
    start_s: float  # seconds from the launch to the first token
    api_key: str  # that its requests must bear; empty where it asks for none

    def alive(self) -> bool:
        """Whether the server's process still runs."""
        ...

    def raise_if_failed(self) -> None:
        """Raises TrialFailed, with the cause read from exit code and log, where the process has ended."""
        ...

    def flush_cache(self) -> None:
        """Forgets cached prefixes, so that no load level profits from the one before."""
        ...


class Engine(Protocol):
    """An adapter for one kind of server; made from a task, cheap to make, never holds a process itself.

    Making one raises a TaskError where the task's sizes are no numbers of GPUs.
    """

    name: str
    simulated: bool

    @property
    def gpu_flags(self) -> Collection[str]:
        """The flags that `gpus` looks at, every spelling of them, with dashes for underscores."""
        ...

    def version(self) -> str:
        """The installed version; EngineUnavailable, saying what is missing, where there is none."""
        ...

    def gpus(self, config: Config) -> int:
        """GPUs that this configuration needs, whatever its values; 0 where the engine computes on the CPU."""
        ...

    def cpus(self, config: Config) -> int:
        """CPUs that it holds: one for the load generator, and where the CPU does the work, its threads'."""
        ...

    def check(self, config: Config) -> None:
        """Raises TrialFailed (stage CHECK) for what is known to be impossible before a GPU is held."""
        ...

    def launch_command(self, config: Config) -> list[str]:
        """The argv with which a user serves this configuration for good, on port 30000 of every address."""
        ...

    def launch(
        self, config: Config, *, gpu_ids: Sequence[str], log_path: Path, timeout_s: float
    ) -> AbstractContextManager[RunningEngine]:
        """Starts the server, waits until it serves a token, and ends its whole process tree on exit.

        Its output goes to `log_path`. Raises TrialFailed (stage START) where it does not become ready
        within `timeout_s`.
        """
        ...


@runtime_checkable
class StartsExported(Protocol):
    """An adapter that starts what `launch_command` told, as it was told, with this machine's own program."""

    def launch_exported(
        self, argv: Sequence[str], *, gpus: int, gpu_ids: Sequence[str], log_path: Path, timeout_s: float
    ) -> AbstractContextManager[RunningEngine]:
        """As `Engine.launch`, with every argument of `argv` but the host and the port: loopback, a free one.

        `gpus` are those that it needs.
        """
        ...
