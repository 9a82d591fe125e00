"""A task's strategy as the searcher that Tune is given."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from ray.tune.search import Searcher
from ray.tune.search.hyperopt import HyperOptSearch
from ray.tune.search.optuna import OptunaSearch

from tuner.plan import planned_trials
from tuner.search.encoding import Code, Encoding, encode, hyperopt_integers, optuna_integers
from tuner.search.gp_sampler import GpSampler
from tuner.search.searcher import METRIC, MODE, Config, StudySearcher
from tuner.space import SearchSpace
from tuner.task import Task

GP_INITIAL = 3  # starting points of the Gaussian process, unless the task says how many
_AS_IT_IS = Code(None, lambda value: value, lambda value: value, lambda value: 0.0)


class GridSearcher(Searcher):
    """Every configuration once, in a shuffled order, so that an early stop has still seen all corners."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__(metric=METRIC, mode=MODE)
        configs = list(space.grid())
        random.Random(seed).shuffle(configs)  # noqa: S311  a reproducible order, no secret
        self._configs: Iterator[Config] = iter(configs)

    def suggest(self, trial_id: str) -> dict[str, Any] | Any:
        """The next configuration, or FINISHED."""
        return next(self._configs, Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A grid learns nothing."""


def make_searcher(task: Task, *, seed: int, space: SearchSpace | None = None, **limits: Any) -> StudySearcher:
    """The searcher of a task's strategy, over the task's space unless another is given.

    `limits` are passed on to `StudySearcher`.
    """
    space, options = space or task.space, task.optimization
    tpe_space = encode(space, integers=optuna_integers)
    inner: Searcher
    if options.enumerates or not tpe_space.codes:
        inner = GridSearcher(space, seed)
        encoding = Encoding(tuple(space.domains), dict.fromkeys(space.domains, _AS_IT_IS), {})
    elif options.strategy == "bayesian" and options.sampler == "hyperopt":
        encoding = encode(space, integers=hyperopt_integers)
        inner = HyperOptSearch(
            HyperOptSearch.convert_search_space(encoding.tune_space),
            metric=METRIC,
            mode=MODE,
            n_initial_points=options.n_initial_random,
            random_state_seed=seed,
        )
    else:
        encoding = tpe_space
        sampler: BaseSampler
        if options.strategy == "random":
            sampler = RandomSampler(seed=seed)
        elif options.sampler == "gp":
            named = "n_initial_random" in options.model_fields_set
            initial = options.n_initial_random if named else GP_INITIAL
            distributions = OptunaSearch.convert_search_space(encoding.tune_space)
            sampler = GpSampler(space, encoding, distributions, n_initial=initial, seed=seed)
        else:
            sampler = TPESampler(n_startup_trials=options.n_initial_random, seed=seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        distributions = OptunaSearch.convert_search_space(encoding.tune_space)
        inner = OptunaSearch(distributions, metric=METRIC, mode=MODE, sampler=sampler)
    return StudySearcher(
        inner,
        encoding,
        space,
        budget=planned_trials(task),
        baseline=options.baseline,
        rounds=options.confirm,
        seed=seed,
        **limits,
    )
