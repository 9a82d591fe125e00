"""Trials that run and trials that wait: which fits into what is free, and what becomes of one that is lost.

Knows the cluster's capacity, and nothing of how suggestions come about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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

    def next(self, due: Callable[[], Pending | None]) -> Pending | None:
        """The first that fits into what is free, those that wait before what is `due`; None for now.

        Where nothing runs, it is the first. A small one may overtake a large one that waits, which keeps
        GPUs busy, but not for ever.
        """
        in_use = sum(self.capacity.needs(pending.suggestion.config) for pending in self._running.values())
        free = self.capacity.allowed - in_use if in_use else math.inf
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

    def withdrawn(self, refused: Callable[[Suggestion], bool]) -> list[Pending]:
        """Those that wait and are `refused`; they wait no longer."""
        gone = [each for each in self._waiting if refused(each.suggestion)]
        self._waiting = [each for each in self._waiting if each not in gone]
        return gone

    def starts(self, trial_id: str, pending: Pending) -> dict[str, Any]:
        """What Tune is told of a trial that starts now."""
        self._running[trial_id] = pending
        suggestion = pending.suggestion
        return {
            "number": suggestion.number,
            "kind": suggestion.kind,
            "flags": dict(suggestion.config),
            "attempt": suggestion.attempt,
            "cpus": self.capacity.cpus_for(suggestion.config),
            "avoid": self.capacity.avoided(suggestion.config, pending.lost_on),
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
