"""A study at one moment: what has ended, what runs and where, what waits. Knows nothing of Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Of a trial's row: what there is to show of one that has ended.
_TOLD = (
    *("trial", "kind", "config", "objective", "objective_unit", "score", "loss", "slo_met"),
    *("failure_stage", "failure_cause", "failure_detail", "stopped_early"),
)


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

    `failed` leaves out what was refused before it was started, which cost no trial. `before` of the trials
    that have ended did so before the study was resumed. `waiting` trials have no GPUs yet; `places` are those
    of the running ones, as far as they are known. `trouble` is what the study waits for to end: results that
    cannot be written, nodes that are gone.
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

    def document(self) -> dict[str, Any]:
        """As JSON has it; of `best` and `last` only what there is to show."""
        told = {
            name: row and {key: row.get(key) for key in _TOLD}
            for name, row in (("best", self.best), ("last", self.last))
        }
        return {**asdict(self), **told}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> StudyProgress:
        """What `document` gave. KeyError, TypeError or ValueError where it is something else."""
        numbers = ("planned", "running", "waiting", "finished", "failed", "before")
        return cls(
            **{name: int(document[name]) for name in numbers},
            elapsed_s=float(document["elapsed_s"]),
            best=_row(document["best"]),
            last=_row(document["last"]),
            places=tuple(
                Place(int(each["trial"]), str(each["node"]), tuple(map(str, each["gpu_ids"])))
                for each in document["places"]
            ),
            trouble=str(document["trouble"]),
        )


def _row(told: Any) -> dict[str, Any] | None:
    if told is None:
        return None
    json.loads(told["config"])
    return {key: told[key] for key in _TOLD}
