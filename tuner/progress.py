"""A study at one moment: what has ended, what runs and where, what waits. Knows nothing of Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a trial runs."""

    trial: int
    node: str
    gpu_ids: tuple[str, ...]

    def __str__(self) -> str:
        gpus = f", GPU{'s' * (len(self.gpu_ids) > 1)} {' '.join(self.gpu_ids)}" if self.gpu_ids else ""
        return f"trial {self.trial} on {self.node}{gpus}"


@dataclass(frozen=True)
class StudyProgress:
    """A study at one moment. `best` is the row of the best trial so far, `last` that of the newest.

    `before` of the trials that have ended did so before the study was resumed. `waiting` trials have no GPUs
    yet; `places` are those of the running ones, as far as they are known. `trouble` is what the study waits
    for to end: results that cannot be written, nodes that are gone.
    """

    planned: int
    running: int
    finished: int
    failed: int
    elapsed_s: float
    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    before: int = 0
    waiting: int = 0
    places: tuple[Place, ...] = ()
    trouble: str = ""

    @property
    def remaining_s(self) -> float | None:
        """Seconds left if trials go on as fast as so far; None before the first has ended."""
        ended = self.finished + self.failed
        new = ended - self.before
        return self.elapsed_s / new * max(self.planned - ended, 0) if new else None
