"""Studies that share a cluster: how much of its GPUs one of them takes while others wait for some.

Ray gives GPUs in the order in which they were asked for, and an actor that goes on to its study's next trial
never gives them back: a second study of trials of the same size waited for the end of the first. So a study
that sees others wait begins no more trials than its share, which is the same for all that have GPUs or wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.util import placement_group_table

_EVERY_S = 1.0  # at most; Ray's control plane is asked each time
_PATIENCE_S = 10.0  # for who waits to take what is free; then it is something else that he waits for


@dataclass(frozen=True)
class Demand:
    """Who has GPUs and who waits for some, by job; `mine` is this one.

    `waiting` has the most GPUs on one node that a job waits for; `free` those of the node that has most free,
    `largest` those of the largest node.
    """

    mine: str
    holding: frozenset[str] = frozenset()
    waiting: dict[str, float] = field(default_factory=dict)
    free: float = 0.0
    largest: float = 0.0


class Sharing:
    """The share of a study, as of now; `ask` looks at the cluster."""

    def __init__(
        self, ask: Callable[[], Demand] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask, self._clock = ask or demand, clock
        self._asked = -_EVERY_S
        self._share = 1.0
        self._left: dict[str, float] = {}  # by job: since when it leaves free what it could take

    def share(self) -> float:
        """1 where no other waits for what this study has; else one of as many parts as want some."""
        now = self._clock()
        if now - self._asked >= _EVERY_S:
            self._asked, self._share = now, self._look(self._ask(), now)
        return self._share

    def _look(self, seen: Demand, now: float) -> float:
        others = {
            job: gpus for job, gpus in seen.waiting.items() if job != seen.mine and gpus <= seen.largest
        }
        self._left = {job: self._left.get(job, now) for job, gpus in others.items() if gpus <= seen.free}
        blocked = [job for job in others if now - self._left.get(job, now) < _PATIENCE_S]
        return 1 / len({seen.mine, *seen.holding, *blocked}) if blocked else 1.0


def demand() -> Demand:
    """What the placement groups of this cluster say; a group's id ends in its job's."""
    holding, waiting = set[str](), dict[str, float]()
    for group in placement_group_table().values():
        gpus = max((bundle.get("GPU", 0.0) for bundle in group["bundles"].values()), default=0.0)
        job = group["placement_group_id"][-8:]
        if gpus and group["state"] == "CREATED":
            holding.add(job)
        elif gpus and group["state"] == "PENDING":
            waiting[job] = max(gpus, waiting.get(job, 0.0))
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    return Demand(
        mine=ray.get_runtime_context().get_job_id(),
        holding=frozenset(holding),
        waiting=waiting,
        free=max((each.get("GPU", 0.0) for each in free.values()), default=0.0),
        largest=max((node["Resources"].get("GPU", 0.0) for node in nodes if node["Alive"]), default=0.0),
    )
