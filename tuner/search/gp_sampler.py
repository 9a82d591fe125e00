"""An Optuna sampler for few, dear trials: a Gaussian process over the configurations that really exist.

TPE proposes from the product of all parameters and needs dozens of trials; here every configuration that
the constraints allow is a candidate, and the one with the highest expected improvement is next. It is
weighed with the chance to work that failed trials leave it. Of several at once each is chosen for what it
is expected to add to those that run, whatever comes of them: they do not ask the same question.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tuner.experience import Known
from tuner.objective import HARD_SLO_TIER
from tuner.search.encoding import Encoding
from tuner.search.feasibility import chance
from tuner.search.prior import Prior
from tuner.search.surrogate import Array, GaussianProcess, expected_improvement, improvement_beside
from tuner.search.warp import Warp
from tuner.space import SearchSpace, Value, config_key

MOST_CANDIDATES = 10_000  # of a listed space; beyond, and of a continuous one, so many are drawn anew
_DRAWN = 2_000
_ALWAYS_SEARCHED = 40  # trials up to which hyperparameters are searched each time; then every fifth
_EVERY = 5
_DRAWN_FIRST, _DRAWN_NEXT = 10, 100  # candidates, of which the first points are chosen
_SPREAD = 2.0  # of losses, logarithms, of which none is known: wide, so that the first lie far apart
_OUTCOMES = 64  # that are drawn for trials that run, until `_SETTLED` have ended; then they are believed
_SETTLED = 10

Config = dict[str, Value]


class GpSampler(BaseSampler):
    """Spreads `n_initial` points, where the prior favours them, then proposes by expected improvement.

    Where `known` is told from elsewhere, one point, the best by it, is enough to begin with.
    """

    def __init__(
        self,
        space: SearchSpace,
        encoding: Encoding,
        distributions: Mapping[str, BaseDistribution],
        *,
        n_initial: int,
        seed: int,
        known: Sequence[Known] = (),
    ) -> None:
        self._space, self._encoding = space, encoding
        self._distributions = dict(distributions)
        self._n_initial = 1 if known else max(n_initial, 2)
        self._rng = np.random.default_rng(seed)
        self._independent = RandomSampler(seed=seed)
        self._model = GaussianProcess(encoding.unordered)
        self._listed = self._enumerated()
        self._known_before = bool(known)
        self._prior = Prior(space, encoding, known)
        self.expected_gain: float | None = None  # of the last point that a model chose: a share

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters are drawn together."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next point, in the sampler's own encoding."""
        told = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number and t.params]
        done = [t for t in told if t.state is TrialState.COMPLETE and t.value is not None]
        running = [t for t in told if t.state is TrialState.RUNNING]
        seen = self._points([*done, *running])
        configs, points = self._candidates({config_key(self._encoding.decode(t.params)) for t in told})
        if not configs:
            return {}
        if len(seen) < self._n_initial or not done:
            chosen = self._first(points, seen)
        else:
            losses = np.array([float(t.value or 0.0) for t in done])
            chosen = self._promising(points, seen, losses)
        return self._encoding.encode(configs[chosen])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Where no candidate is left, anything: it is known, and costs nothing."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _points(self, trials: Sequence[FrozenTrial]) -> Array:
        return self._encoding.points([self._encoding.decode(trial.params) for trial in trials])

    def _enumerated(self) -> tuple[list[Config], list[str], Array] | None:
        """Every configuration that exists, its key and its point; None where they are too many to list."""
        if not self._space.enumerable() or self._space.size > MOST_CANDIDATES * 100:
            return None
        configs = list(itertools.islice(self._space.grid(), MOST_CANDIDATES + 1))
        if len(configs) > MOST_CANDIDATES:
            return None
        return configs, list(map(config_key, configs)), self._encoding.points(configs)

    def _candidates(self, known: set[str]) -> tuple[list[Config], Array]:
        """Configurations that were not told yet, and their points."""
        if self._listed is not None:
            configs, keys, points = self._listed
            fresh = [place for place, key in enumerate(keys) if key not in known]
            return [configs[place] for place in fresh], points[fresh]
        drawn = [config for config in map(self._draw, range(_DRAWN)) if self._space.allows(config)]
        unknown = [config for config in drawn if config_key(config) not in known]
        return unknown, self._encoding.points(unknown)

    def _draw(self, _: int) -> Config:
        return {name: domain.draw(float(self._rng.random())) for name, domain in self._space.domains.items()}

    def _first(self, points: Array, seen: Array) -> int:
        """Before there is a model: of some that are drawn what the prior favours, or adds most to `seen`.

        What earlier studies favour is the first.
        """
        expected = self._prior(points)
        if not len(seen) and self._known_before:
            return int(np.argmin(expected))
        most = _DRAWN_NEXT if len(seen) else _DRAWN_FIRST
        drawn = self._rng.choice(len(points), size=min(most, len(points)), replace=False)
        if not len(seen):
            return int(drawn[expected[drawn].argmin()])
        self._model.expect(_SPREAD)
        return int(drawn[self._improvement(points[drawn], seen, math.inf, _OUTCOMES).argmax()])

    def _promising(self, points: Array, seen: Array, losses: Array) -> int:
        """The candidate of the highest expected improvement that may well work, beside those that run.

        What it has to improve on is the lowest mean of the model at a point that was measured, not the
        lowest loss, which may have been luck.
        """
        told, running, worked = seen[: len(losses)], seen[len(losses) :], losses < HARD_SLO_TIER / 2
        works = np.ones(len(points))
        if not worked.all():
            works = chance(points, told, worked, self._encoding.unordered)
        if not worked.any():
            return int(self._rng.choice(np.flatnonzero(works >= works.max() - 1e-9)))
        points_worked, losses = told[worked], losses[worked]
        self._prior.told(points_worked, losses, points)
        known = self._prior(points_worked)
        unexpected = losses - known
        unexpected = Warp.of(unexpected)(unexpected)
        count = len(losses)
        search = count <= _ALWAYS_SEARCHED or count % _EVERY == 0
        self._model.fit(points_worked, unexpected, search=search)
        lowest = float((self._model.predict(points_worked)[0] + known).min())
        improvement = self._improvement(points, running, lowest, _OUTCOMES if count < _SETTLED else 1)
        chosen = int(np.argmax(improvement * works))
        self.expected_gain = float(improvement[chosen]) if count > 1 else None  # of one, no spread is known
        return chosen

    def _improvement(self, points: Array, running: Array, lowest: float, outcomes: int) -> Array:
        """What each point is expected to improve on `lowest`, and on whatever comes of those that run."""
        count, every = len(points), np.concatenate([points, running])
        mean, deviation, covariance = self._model.predict_with(every, running)
        mean += self._prior(every)
        if not len(running):
            return expected_improvement(mean, deviation, lowest)
        half = self._rng.standard_normal((outcomes // 2, len(running)))
        return improvement_beside(
            mean[:count],
            deviation[:count],
            lowest,
            running=mean[count:],
            covariance=covariance[count:],
            shared=covariance[:count],
            outcomes=np.concatenate([half, -half]) if outcomes > 1 else np.zeros((1, len(running))),
        )
