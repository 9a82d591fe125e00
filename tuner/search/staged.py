"""Hierarchical search: groups of parameters in turn, each with the others held at the best so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tuner.suggestion import METRIC, MODE, Config

SHARE_OF_STAGES = 0.6  # of all trials; the rest search all parameters together

Point = dict[str, Any]  # in the encoding of the samplers


@dataclass
class Stage:
    """One group: the searcher of its parameters, and how often it is asked at the most.

    `tried` are the whole points that it had come to before the study went on: its searcher's first ones.
    """

    searcher: Searcher
    most: int
    tried: list[Point] = field(default_factory=list)


class StagedSearcher(Searcher):
    """The stages in their order, then `joint`, which is told all that they found.

    A stage that has asked as often as it may gives way to the next, whether all its answers are in or
    not. `start` is the point at which parameters are held that no stage has searched yet.
    """

    def __init__(self, stages: Sequence[Stage], joint: OptunaSearch, start: Point) -> None:
        super().__init__(metric=METRIC, mode=MODE)
        self._stages, self._joint, self._held = list(stages), joint, dict(start)
        self._best = math.inf
        self._asked: dict[str, tuple[Searcher, Point]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | Any:
        """The next point of the stage that is on, the other parameters at their best so far."""
        while self._stages:
            stage = self._stages[0]
            found = stage.searcher.suggest(trial_id) if stage.most > 0 else None
            if isinstance(found, dict):
                stage.most -= 1
                point = stage.tried.pop(0) if stage.tried else {**self._held, **found}
                self._asked[trial_id] = stage.searcher, point
                return point
            self._stages.pop(0)
        joint: Point | None = self._joint.suggest(trial_id)
        if joint is not None:
            self._asked[trial_id] = self._joint, joint
        return joint

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Teaches the searcher that asked, and `joint`."""
        searcher, point = self._asked.pop(trial_id)
        searcher.on_trial_complete(trial_id, result, error)
        if error or not result:
            return
        loss = float(result[METRIC])
        if searcher is not self._joint:
            self._joint.add_evaluated_point(point, loss)
        if loss < self._best:
            self._best, self._held = loss, point


def stages_of(names: Sequence[str], given: Sequence[Sequence[str]], first: Sequence[str]) -> list[list[str]]:
    """The groups of `names`: as `given`, else those that are among `first`, then the others two by two."""
    if given:
        return [[name for name in group if name in names] for group in given]
    leading = [name for name in names if name in first]
    others = [name for name in names if name not in first]
    return [group for group in (leading, *(others[i : i + 2] for i in range(0, len(others), 2))) if group]


def by_stage(
    tried: Sequence[Config], stages: Sequence[Sequence[str]], most: Sequence[int], start: Config
) -> list[list[Config]]:
    """What was `tried`, in the order of its proposals, by the stage that proposed it; at last what none did.

    A stage has begun where a parameter of it has left `start`, and is over where it has asked its `most`.
    """
    found: list[list[Config]] = [[] for _ in (*stages, "joint")]
    now = 0
    for config in tried:
        moved = [place for place, names in enumerate(stages) if any(config[n] != start[n] for n in names)]
        now = max(now, *moved, 0)
        while now < len(stages) and len(found[now]) == most[now]:
            now += 1
        found[now].append(config)
    return found


def trials_of(stages: Sequence[Sequence[str]], sizes: Mapping[str, float], budget: int) -> list[int]:
    """How often each stage asks: its share by its parameters, no more than it has combinations."""
    count = sum(map(len, stages))
    shares = [math.ceil(SHARE_OF_STAGES * budget * len(stage) / count) for stage in stages]
    wholes = [math.prod(sizes[name] for name in stage) for stage in stages]
    return [int(min(share, whole)) for share, whole in zip(shares, wholes, strict=True)]
