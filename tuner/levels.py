"""Which load levels a trial goes through: all that the task lists, or a search for the highest load that
keeps the SLOs. Knows nothing of engines; it is told what each level showed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from tuner.metrics import Metrics
from tuner.scenarios import Scenario, parse_scenario
from tuner.task import Task
from tuner.workload import LoadLevel

RESOLUTION = 1.1  # a higher load that broke the SLOs is at most so many times the one that is found
NEAR = 0.02  # a promise kept or broken by less is looked at twice: repeats differ by 0.5-1.1 % (CV)


class Levels(Protocol):
    """The load levels of one trial, one after the other."""

    most: int  # levels that there may be

    def next(self) -> LoadLevel | None:
        """The next level; None when there is no other."""
        ...

    def saw(self, metrics: Metrics | None) -> None:
        """What the newest level showed; None where the server refused too many of its requests."""
        ...

    @property
    def may_be_refused(self) -> bool:
        """Whether it is an answer, not a failure, that the server refuses the newest level."""
        ...

    @property
    def judged(self) -> Sequence[Metrics]:
        """What the trial is scored by."""
        ...

    @property
    def max_loads(self) -> Mapping[str, float]:
        """By scenario the highest load that kept the SLOs, 0 where none did; empty where not looked for."""
        ...


def levels_of(task: Task, seed: int) -> Levels:
    """The load levels of a trial of `task`."""
    if task.benchmark.find is None:
        return Listed(task.levels(seed))
    scenarios = dict.fromkeys(map(parse_scenario, task.benchmark.traffic_scenarios))
    return InTurn([MaxLoad(task, scenario, seed) for scenario in scenarios])


class Listed:
    """Every level of a list, in its order."""

    may_be_refused = False
    max_loads: Mapping[str, float] = {}

    def __init__(self, levels: Sequence[LoadLevel]) -> None:
        self.most = len(levels)
        self.judged: list[Metrics] = []
        self._left = iter(levels)

    def next(self) -> LoadLevel | None:
        return next(self._left, None)

    def saw(self, metrics: Metrics | None) -> None:
        if metrics is not None:
            self.judged.append(metrics)


class InTurn:
    """Several searches, one after the other; the trial is scored by what each of them finds."""

    def __init__(self, searches: Sequence[MaxLoad]) -> None:
        self.most = sum(search.most for search in searches)
        self._begun: list[MaxLoad] = []
        self._left = iter(searches)

    def next(self) -> LoadLevel | None:
        level = self._begun[-1].next() if self._begun else None
        if level is None and (search := next(self._left, None)) is not None:
            self._begun.append(search)
            level = search.next()
        return level

    def saw(self, metrics: Metrics | None) -> None:
        self._begun[-1].saw(metrics)

    @property
    def may_be_refused(self) -> bool:
        return bool(self._begun[-1].judged)  # a scenario's lowest load must be served

    @property
    def judged(self) -> Sequence[Metrics]:
        return [metrics for search in self._begun for metrics in search.judged]

    @property
    def max_loads(self) -> Mapping[str, float]:
        return {search.scenario: search.max_load for search in self._begun if search.judged}


class MaxLoad:
    """The highest load of one scenario, between the lowest and the highest of a list, that keeps the SLOs.

    Taken for granted: where a load keeps them, every lower one does. The lowest and the highest load come
    first, then the geometric middle of the two that are nearest to the border, until these are within
    `RESOLUTION`. A load near the border (`NEAR`) is measured a second time, with other prompts, and the
    mean of both decides: a search must not turn the wrong way by chance. It is scored by the load that is
    found, or by the lowest where none keeps the SLOs.
    """

    def __init__(self, task: Task, scenario: Scenario, seed: int) -> None:
        self.scenario = str(scenario)
        self._level = partial(task.level, scenario)
        self._seed, self._slo = seed, task.slo_terms
        self._at_rate = task.benchmark.request_rate is not None
        self._now, self._highest = (float(end(task.benchmark.loads)) for end in (min, max))
        self._kept: float | None = None  # the highest load that is known to keep the SLOs
        self._broke: float | None = None  # the lowest that is known not to
        self._looks: list[Metrics] = []  # at the load of now
        self._found: list[Metrics] = []
        self.most = 2 * (2 + self._deepest(self._now, self._highest))

    def next(self) -> LoadLevel | None:
        """The load of now (again, where it was near the border), or the next one to try."""
        if not self._looks and (self._kept, self._broke) != (None, None):
            following = self._following()
            if following is None:
                return None
            self._now = following
        return self._level(self._now, (self._seed + len(self._looks)) % 2**32)

    def saw(self, metrics: Metrics | None) -> None:
        looks = self._looks
        if metrics is not None:
            looks.append(metrics)
        elif self._found:
            looks.clear()  # but that the lowest load was served once is an answer
        each = [self._slo.judge([look]).worst_violation for look in looks]
        violation = math.fsum(each) / len(each) if each else math.inf
        if metrics is not None and len(looks) == 1 and abs(violation) < NEAR:
            return
        if looks and (not self._found or violation <= 0):
            self._found = [looks[each.index(min(each))]]
        if violation <= 0:
            self._kept = self._now
        else:
            self._broke = self._now
        self._looks = []

    @property
    def judged(self) -> Sequence[Metrics]:
        return self._found or self._looks

    @property
    def max_load(self) -> float:
        """The highest load that kept the SLOs so far, 0 where none did."""
        return self._kept or 0.0

    def _following(self) -> float | None:
        """The load between the two bounds that is to be tried next."""
        if self._kept is None or self._kept >= self._highest:
            return None
        return self._highest if self._broke is None else self._middle(self._kept, self._broke)

    def _middle(self, kept: float, broke: float) -> float | None:
        """The load to try between two; None where these are near enough."""
        middle = math.sqrt(kept * broke)
        middle = middle if self._at_rate else float(round(middle))
        return middle if kept < middle < broke and broke / kept > RESOLUTION else None

    def _deepest(self, kept: float, broke: float) -> int:
        """How many loads are tried between two at the most, whatever they show."""
        middle = self._middle(kept, broke)
        return 0 if middle is None else 1 + max(self._deepest(kept, middle), self._deepest(middle, broke))
