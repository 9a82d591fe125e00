"""What runs studies for the server: a protocol, so that the API knows nothing of Ray.

A job is one run of the command `tuner`; several, one after the other, make up a study that was resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class JobState(StrEnum):
    """What has become of a job; the study's own results say what it found."""

    WAITING = "waiting"
    RUNNING = "running"
    STOPPED = "stopped"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Whether its process has ended."""
        return self not in (JobState.WAITING, JobState.RUNNING)


@dataclass(frozen=True)
class Order:
    """A command line of `tuner`, run in a folder that holds `files`, for a study of the results in `root`."""

    study: str
    root: str
    words: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A job of a study. `started_s` and `ended_s` are Unix times, `message` is what its runner says of it."""

    id: str
    study: str
    state: JobState
    started_s: float
    message: str = ""
    ended_s: float = 0.0  # 0 while it is not over


class Jobs(Protocol):
    """Runs jobs somewhere, and outlives the server's own process."""

    def start(self, order: Order) -> Job:
        """Starts a job; TunerError where that cannot be done."""
        ...

    def stop(self, job: str) -> None:
        """Ends a job gracefully: finished trials are kept, engines leave their GPUs. Does not wait."""
        ...

    def known(self, root: str) -> list[Job]:
        """The jobs for studies of the results in `root`, the newest first."""
        ...

    def output(self, job: str) -> str:
        """What the job has printed so far."""
        ...
