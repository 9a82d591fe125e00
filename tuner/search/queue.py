"""Trials that run and trials that wait: which fits into what is free, and what becomes of one that is lost.

Knows the cluster's capacity, and nothing of how suggestions come about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tuner.capacity import Capacity
from tuner.suggestion import ATTEMPTS, Suggestion

_MOST, _OVERTAKEN = 4, 8  # suggestions that wait; how often in a row the first of them may be overtaken


@dataclass
class Pending:
    """A suggestion that waits or runs, and every id by which the inner searcher proposed it."""

    suggestion: Suggestion
    inner_ids: list[str] = field(default_factory=list)
    node: str | None = None  # where it runs, once that is known
    holds: float = 0.0  # as `avoids`, since it was handed out
    avoids: Collection[str] = ()
    lost_on: set[str] = field(default_factory=set)


class Queue:
    """The suggestions of a study that have not come to their end."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._running: dict[str, Pending] = {}  # by Tune's trial id
        self._waiting: list[Pending] = []
        self._overtaken = 0  # how often in a row the first that waits was

    def __iter__(self) -> Iterator[Pending]:
        """Those that run and those that wait."""
        return iter([*self._running.values(), *self._waiting])

    def __bool__(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def running(self) -> int:
        """How many were handed out and have not ended."""
        return len(self._running)

    def next(self, due: Callable[[], Pending | None]) -> Pending | None:
        """The first that fits into what is free, those that wait before what is `due`; None for now.

        Where nothing runs, it is the first, unless others are to have their turn before. A small one may
        overtake a large one that waits, which keeps GPUs busy, but not for ever.
        """
        free = self._free() if self._running or self.capacity.gives_way() else math.inf
        while True:
            for place, pending in enumerate(self._waiting):
                if self.capacity.needs(pending.suggestion.config) <= free:
                    self._overtaken = self._overtaken + 1 if place else 0
                    return self._waiting.pop(place)
                if self._overtaken >= _OVERTAKEN:
                    return None
            if len(self._waiting) >= _MOST or (self._waiting and free < self.capacity.fewest):
                return None
            if (following := due()) is None:
                return None
            self._waiting.append(following)

    def _free(self) -> float:
        """The most that is free on a node and left of the study's share, beside what was handed out.

        A trial that is not placed yet counts where it fits best.
        """
        has = {node.id: self.capacity.has(node) for node in self.capacity.usable()}
        free, taken = dict(has), 0.0
        for pending in sorted(self._running.values(), key=lambda each: each.node is None):
            node = pending.node
            if node is None:
                able = [each for each in has if has[each] >= pending.holds and each not in pending.avoids]
                node = min(able, key=lambda each: _misfit(free[each], pending.holds), default=None)
            if node in free:
                taken += pending.holds
                free[node] -= pending.holds
        return min(max(free.values(), default=0.0), self.capacity.allowed - taken)

    def withdrawn(self, refused: Callable[[Suggestion], bool]) -> list[Pending]:
        """Those that wait and are `refused`; they wait no longer."""
        gone = [each for each in self._waiting if refused(each.suggestion)]
        self._waiting = [each for each in self._waiting if each not in gone]
        return gone

    def starts(self, trial_id: str, pending: Pending) -> dict[str, Any]:
        """What Tune is told of a trial that starts now."""
        self._running[trial_id] = pending
        suggestion = pending.suggestion
        pending.holds = self.capacity.needs(suggestion.config)
        pending.avoids = self.capacity.avoided(suggestion.config, pending.lost_on)
        return {
            "number": suggestion.number,
            "kind": suggestion.kind,
            "flags": dict(suggestion.config),
            "attempt": suggestion.attempt,
            "expected_gain": suggestion.expected_gain,
            "cpus": self.capacity.cpus_for(suggestion.config),
            "avoid": pending.avoids,
        }

    def placed(self, trial_id: str, node: str) -> None:
        """The trial runs on the node of that id."""
        self._running[trial_id].node = node

    def ended(self, trial_id: str) -> Pending:
        """The trial has come to its own end, whatever that was."""
        pending = self._running.pop(trial_id)
        if pending.node is not None:
            self.capacity.served(pending.node)
        return pending

    def lost(self, trial_id: str) -> Pending | None:
        """The trial was lost to infrastructure, and is the next again; returned where it is given up."""
        pending = self._running.pop(trial_id)
        suggestion = pending.suggestion
        if pending.node is not None:
            self.capacity.lost(pending.node)
            pending.lost_on.add(pending.node)
        if suggestion.attempt == ATTEMPTS:
            return pending
        again = replace(suggestion, attempt=suggestion.attempt + 1)
        self._waiting.insert(0, replace(pending, suggestion=again, node=None))
        return None


def _misfit(free: float, needs: float) -> tuple[bool, float]:
    """The least where least is left over; where it does not fit, which waits then, where most is free."""
    return (free < needs, free if free >= needs else -free)
