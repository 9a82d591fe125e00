"""Studies that share a cluster: how much of its GPUs one of them takes while others wait for some.

Ray gives GPUs in the order in which they were asked for, and an actor that goes on to its study's next trial
never gives them back: a second study of trials of the same size waited for the end of the first. So a study
that sees others wait begins no more trials than its share, which is the same for all that have GPUs or wait.
Where that is less than a single trial, studies take turns: it gives way when its trial has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import ray
from ray._private.state import available_resources_per_node
from ray.util import placement_group_table

from tuner.capacity import Node

_EVERY_S = 1.0  # at most; Ray's control plane is asked each time
_PATIENCE_S = 10.0  # for who waits to take what is free; then it is something else that he waits for


@dataclass(frozen=True)
class Demand:
    """Who has GPUs and who waits for some, by job; `mine` is this one.

    `waiting` has the most GPUs on one node that a job waits for. Of the nodes that this one may use, `free`
    are the GPUs of the one that has most free, `largest` those of the largest.
    """

    mine: str
    holding: frozenset[str] = frozenset()
    waiting: dict[str, float] = field(default_factory=dict)
    free: float = 0.0
    largest: float = 0.0


class Sharing:
    """The share of a study, as of now; `ask` looks at the cluster."""

    def __init__(self, ask: Callable[[], Demand], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._clock = ask, clock
        self._asked = -_EVERY_S
        self._share, self._gives_way = 1.0, False
        self._left: dict[str, float] = {}  # by job: since when it leaves free what it could take
        self._declined: set[str] = set()  # jobs that did so for long: once is enough to give way to them

    def share(self) -> float:
        """1 where no other waits for what this study has; else one of as many parts as want some."""
        self._look()
        return self._share

    def gives_way(self) -> bool:
        """Whether others wait for what this study holds, or are about to take what it gave back."""
        self._look()
        return self._gives_way

    def _look(self) -> None:
        now = self._clock()
        if now - self._asked < _EVERY_S:
            return
        self._asked, seen = now, self._ask()
        others = {
            job: gpus for job, gpus in seen.waiting.items() if job != seen.mine and gpus <= seen.largest
        }
        self._left = {job: self._left.get(job, now) for job, gpus in others.items() if gpus <= seen.free}
        blocked = [job for job in others if now - self._left.get(job, now) < _PATIENCE_S]
        self._declined |= others.keys() - blocked
        self._share = 1 / len({seen.mine, *seen.holding, *blocked}) if blocked else 1.0
        self._gives_way = any(
            seen.mine in seen.holding or others[job] <= seen.free
            for job in blocked
            if job not in self._declined
        )


def demand(usable: Sequence[Node]) -> Demand:
    """What the placement groups of this cluster say, of which a study may use these nodes.

    A group's id ends in its job's.
    """
    holding, waiting = set[str](), dict[str, float]()
    for group in placement_group_table().values():
        gpus = max((bundle.get("GPU", 0.0) for bundle in group["bundles"].values()), default=0.0)
        job = group["placement_group_id"][-8:]
        if gpus and group["state"] == "CREATED":
            holding.add(job)
        elif gpus and group["state"] == "PENDING":
            waiting[job] = max(gpus, waiting.get(job, 0.0))
    free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    return Demand(
        mine=ray.get_runtime_context().get_job_id(),
        holding=frozenset(holding),
        waiting=waiting,
        free=max((free.get(node.id, {}).get("GPU", 0.0) for node in usable), default=0.0),
        largest=max((node.gpus for node in usable), default=0.0),
    )
