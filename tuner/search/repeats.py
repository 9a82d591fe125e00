"""What is measured again after the search, to tell the best from the lucky: pure rules that know no Ray.

A loss is the logarithm of a score, so a difference of losses is a share.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from tuner.analysis.confirmation import EQUAL, SURE_AT_EACH_LOOK, half_width, pooled
from tuner.objective import HARD_SLO_TIER
from tuner.plan import planned_repeats
from tuner.search.surrogate import expected_improvement

_NEGLIGIBLE = EQUAL / 2  # share of the score that a wrong choice between two may be expected to cost


class Repeats:
    """The losses of each configuration's runs, by its key, and which of them has another; see `due`."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._runs: dict[str, list[float]] = {}
        self._begun: Counter[str] = Counter()  # since the search ended
        self.planned = 0  # as far as is known

    def first(self, key: str, loss: float) -> None:
        """A trial of the search has ended: what is measured again is asked anew."""
        self._runs[key] = [loss]
        self._begun.clear()

    def withdrawn(self, key: str) -> None:
        """A repeat that `next` asked for cannot run any more."""
        self._begun[key] -= 1

    def ended(self, key: str, loss: float) -> None:
        """A repeat that `next` asked for has ended."""
        self._runs[key].append(loss)

    def recalled(self, key: str, loss: float) -> bool:
        """A repeat ended before the study went on; False where its first run cannot be read any more."""
        if key not in self._runs:
            return False
        self._begun[key] += 1
        self.ended(key, loss)
        return True

    def next(
        self, candidates: Sequence[str], under_way: Mapping[str, int], *, baseline: str | None, spare: int
    ) -> str | None:
        """The key of the configuration to measure again; None where enough is known."""
        self.planned = planned_repeats(self._rounds, len(candidates), baseline=baseline is not None)
        key = due(
            candidates,
            self._runs,
            under_way,
            self._begun,
            rounds=self._rounds,
            baseline=baseline,
            spare=spare,
        )
        if key is not None:
            self._begun[key] += 1
        return key


def due(
    candidates: Sequence[str],
    runs: Mapping[str, Sequence[float]],
    under_way: Mapping[str, int],
    repeated: Mapping[str, int],
    *,
    rounds: int,
    baseline: str | None,
    spare: int,
) -> str | None:
    """The key of the configuration to measure again; None where enough is known.

    `runs` are the losses of each configuration so far, its first one included, `under_way` how many more are
    awaited; `repeated` counts the repeats that were begun since the search ended. In each of `rounds` the
    baseline is due once, then `FINALISTS` times whichever of the leader and its strongest rival was measured
    less: who these are is asked anew each time, for a lucky one falls back when it is repeated, and one that
    fails is out. Then up to `spare` more, while two that matter cannot be told apart. `baseline` is None
    where it would only fail.
    """
    in_round = planned_repeats(1, len(candidates), baseline=False)
    planned = planned_repeats(rounds, len(candidates), baseline=baseline is not None)
    begun = sum(repeated.values())
    of_baseline = 0 if baseline is None else repeated.get(baseline, 0)
    of_others = begun - of_baseline
    candidates = [key for key in candidates if _sound(runs[key])]
    if not candidates or not rounds:
        return None
    if baseline is not None and of_baseline < rounds and of_baseline * in_round <= of_others:
        return baseline
    field = _Field(runs, under_way, baseline)
    if of_others < rounds * in_round:
        return field.less_measured(*field.leading(candidates))
    pair = field.undecided(candidates) if begun < planned + spare else None
    return field.less_measured(*pair) if pair else None


def _sound(losses: Sequence[float]) -> bool:
    """Whether no run has failed."""
    return all(loss < HARD_SLO_TIER / 2 for loss in losses)


class _Field:
    """The configurations by the means of their runs; those that are under way count as runs already."""

    def __init__(
        self, runs: Mapping[str, Sequence[float]], under_way: Mapping[str, int], baseline: str | None
    ) -> None:
        self._runs, self._baseline = runs, baseline
        self._mean = {key: float(np.mean(own)) for key, own in runs.items()}
        self._count = {key: len(own) + under_way.get(key, 0) for key, own in runs.items()}
        self._noise = pooled(self._fair(key) for key in runs if _sound(runs[key]))

    def _fair(self, key: str) -> Sequence[float]:
        """The runs that a configuration was not picked for, from which the answer has its gain."""
        return self._runs[key] if key == self._baseline else self._runs[key][1:]

    def less_measured(self, leader: str, rival: str) -> str:
        """The one of both that was measured less."""
        return leader if self._count[leader] <= self._count[rival] else rival

    def leading(self, keys: Sequence[str]) -> tuple[str, str]:
        """The lowest mean, and of the others the one that is likeliest to lie below it in truth."""
        leader = min(keys, key=self._mean.__getitem__)
        others = [key for key in keys if key != leader] or [leader]
        return leader, min(others, key=lambda key: self._behind(key, leader) / self._blur(key, leader))

    def undecided(self, keys: Sequence[str]) -> tuple[str, str] | None:
        """The leader and what it cannot be told apart from; None where enough is known.

        A rival counts by the gain that is expected of taking it instead, should it turn out better; the
        baseline, where a gain that would be worth having may be chance.
        """
        leader, _ = self.leading(keys)
        if self._noise is None:
            return None
        deviation, _ = self._noise
        lost = {key: self._expected_loss(leader, key, deviation) for key in keys if key != leader}
        rival = max(lost, key=lost.__getitem__, default=leader)
        if lost.get(rival, 0.0) > _NEGLIGIBLE:
            return leader, rival
        if self._baseline is not None and self._may_be_chance(leader, self._baseline, self._noise):
            return leader, self._baseline
        return None

    def _expected_loss(self, leader: str, rival: str, deviation: float) -> float:
        """By taking the leader, should the rival be better; a share of the score."""
        error = np.array(max(deviation * self._blur(rival, leader), 1e-12))
        return float(expected_improvement(np.array(self._behind(rival, leader)), error, 0.0))

    def _may_be_chance(self, leader: str, baseline: str, noise: tuple[float, int]) -> bool:
        """Whether a gain that would be worth having lies within its interval, as the answer will have it."""
        ours, theirs = self._fair(leader), self._fair(baseline)
        if not ours:
            return True
        gain = float(np.mean(theirs)) - float(np.mean(ours))
        return EQUAL < gain < half_width(noise, len(ours), len(theirs), SURE_AT_EACH_LOOK)

    def _behind(self, key: str, leader: str) -> float:
        return self._mean[key] - self._mean[leader]

    def _blur(self, one: str, two: str) -> float:
        """The standard error of the difference of both means, in standard deviations of a run."""
        return math.sqrt(1 / self._count[one] + 1 / self._count[two])
