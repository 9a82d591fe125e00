"""A task's strategy as the searcher that Tune is given."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tuner.errors import UsageError
from tuner.experience import NOTHING, Experience, Known
from tuner.past import Past
from tuner.plan import FINALISTS, planned_repeats, planned_trials, sampler_of
from tuner.search.encoding import Code, Encoding, encode, hyperopt_integers, optuna_integers
from tuner.search.gp_sampler import GpSampler
from tuner.search.searcher import StudySearcher
from tuner.search.staged import Stage, StagedSearcher, by_stage, stages_of, trials_of
from tuner.space import SearchSpace
from tuner.stopping import EarlyStopping, SearchEnd
from tuner.suggestion import METRIC, MODE, Config, metric_names
from tuner.task import Task
from tuner.task.optimization import Optimization

MEASURED_AGAIN = 2  # of the best configurations of earlier studies: the first trials of this one
GP_INITIAL = 2  # starting points of the Gaussian process, unless the task says how many
COARSE_SHARE = 0.3  # of a hybrid search's trials, for its coarse grid
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


@dataclass(frozen=True)
class Inner:
    """A searcher of samplers' points, how those are read, and what it expects to gain by its next one."""

    searcher: Searcher
    encoding: Encoding
    expected_gain: Callable[[], float | None] = lambda: None


def make_searcher(
    task: Task,
    *,
    seed: int,
    space: SearchSpace | None = None,
    known: Experience = NOTHING,
    past: Past | None = None,
    gpu_flags: Sequence[str] = (),
    **limits: Any,
) -> StudySearcher:
    """The searcher of a task's strategy, over the task's space unless another is given.

    What is `known` before is told to it: the best of its data are measured first, the priors guide a
    Gaussian process until trials say otherwise. UsageError for a sampler that cannot be told. Of a study
    that goes on, the `past` is told as well. `gpu_flags` are the parameters that a trial's GPUs depend on,
    a hierarchical search's first stage. `limits` are passed on to `StudySearcher`.
    """
    space, options = space or task.space, task.optimization
    every = past.configs() if past else []
    tried = [config for config in every if space.contains(config)]
    budget = planned_trials(task, elsewhere=len(every) - len(tried))
    inner = _inner(task, space, seed, budget, known, tried, gpu_flags)
    repeats = planned_repeats(options.confirm, FINALISTS, baseline=options.baseline)
    searcher = StudySearcher(
        inner.searcher,
        inner.encoding,
        space,
        budget=budget,
        baseline=options.baseline,
        rounds=options.confirm,
        seed=seed,
        end=SearchEnd(
            patience=options.convergence.patience,
            least_gain=options.convergence.least_gain,
            max_time_s=options.max_time,
            max_gpu_hours=options.max_gpu_hours,
            repeats=repeats,
        ),
        stopping=EarlyStopping() if task.stops_trials else None,
        metrics=metric_names(len(task.objectives)),
        expected_gain=inner.expected_gain,
        **limits,
    )
    if past:
        searcher.recall(past)
    return searcher


def _inner(
    task: Task,
    space: SearchSpace,
    seed: int,
    budget: int,
    known: Experience,
    tried: Sequence[Config],
    gpu_flags: Sequence[str],
) -> Inner:
    """The strategy's searcher. What was `tried` before are its first points, which the study answers."""
    options = task.optimization
    sampler = sampler_of(task).name
    if known != NOTHING:
        _require_teachable(options, sampler, known)
    if options.enumerates or not encode(space, integers=optuna_integers).codes:
        plain = Encoding(tuple(space.domains), dict.fromkeys(space.domains, _AS_IT_IS), {})
        return Inner(GridSearcher(space, seed), plain)
    if options.strategy == "hierarchical":
        return _staged(options, space, sampler, seed, budget, tried, gpu_flags)
    ranked = sorted(known.data, key=lambda each: each[1])
    first = [*tried, *(config for config, _ in ranked[:MEASURED_AGAIN])]
    if options.strategy == "hybrid":
        first += space.coarse(max(2, round(COARSE_SHARE * budget)), seed)
    inner = _modelled(options, space, sampler, seed, first, known.priors)
    if known.data:
        assert isinstance(inner.searcher, OptunaSearch)
        for config, loss in ranked:
            inner.searcher.add_evaluated_point(inner.encoding.encode(config), loss)
    return inner


def _require_teachable(options: Optimization, sampler: str, known: Experience) -> None:
    if options.strategy not in ("bayesian", "hybrid") or sampler not in ("gp", "tpe"):
        raise UsageError(
            "--warm-start and --prior need the strategy bayesian or hybrid and the sampler auto, gp or tpe; "
            f"the task has {options.strategy} and {sampler}"
        )
    if len(options.objectives) > 1:
        raise UsageError("--warm-start and --prior need a task of one objective")
    if known.priors and sampler != "gp":
        raise UsageError(
            f"only the sampler gp can use a prior (--prior, or a study of other conditions), not {sampler}"
        )


def _modelled(
    options: Optimization,
    space: SearchSpace,
    sampler: str,
    seed: int,
    first: Sequence[Config] = (),
    priors: Sequence[Known] = (),
) -> Inner:
    """A sampler behind Ray's adapter; `first` are the configurations that it starts with."""
    integers = hyperopt_integers if sampler == "hyperopt" else optuna_integers
    encoding = encode(space, integers=integers)
    points = [encoding.encode(config) for config in first] or None
    if sampler == "hyperopt":
        from ray.tune.search.hyperopt import HyperOptSearch  # noqa: PLC0415  it takes 0.2 s, and few want it

        searcher: Searcher = HyperOptSearch(
            HyperOptSearch.convert_search_space(encoding.tune_space),
            metric=METRIC,
            mode=MODE,
            points_to_evaluate=points,
            n_initial_points=options.n_initial_random,
            random_state_seed=seed,
        )
        return Inner(searcher, encoding)
    distributions = OptunaSearch.convert_search_space(encoding.tune_space)
    drawn: BaseSampler
    gain: Callable[[], float | None] = lambda: None  # noqa: E731
    if sampler == "random":
        drawn = RandomSampler(seed=seed)
    elif sampler == "gp":
        named = "n_initial_random" in options.model_fields_set
        initial = options.n_initial_random if named else GP_INITIAL
        process = GpSampler(space, encoding, distributions, n_initial=initial, seed=seed, known=priors)
        drawn, gain = process, lambda: process.expected_gain
    elif sampler == "cmaes":
        drawn = _evolution(options.n_initial_random, seed)
    else:
        drawn = TPESampler(n_startup_trials=options.n_initial_random, seed=seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    metrics = list(metric_names(len(options.objectives)))
    several = len(metrics) > 1
    searcher = OptunaSearch(
        distributions,
        metric=metrics if several else METRIC,
        mode=[MODE] * len(metrics) if several else MODE,
        sampler=drawn,
        points_to_evaluate=points,
    )
    return Inner(searcher, encoding, gain)


def _evolution(initial: int, seed: int) -> CmaEsSampler:
    """CMA-ES that keeps all values of a list within reach (Hamano et al. 2022, "CMA-ES with margin")."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return CmaEsSampler(
            n_startup_trials=initial, warn_independent_sampling=False, with_margin=True, seed=seed
        )


def _staged(
    options: Optimization,
    space: SearchSpace,
    sampler: str,
    seed: int,
    budget: int,
    tried: Sequence[Config],
    gpu_flags: Sequence[str],
) -> Inner:
    """The groups of parameters in turn, then all of them together."""
    sizes = {name: domain.size() for name, domain in space.domains.items() if domain.size() > 1}
    groups = [group for group in stages_of(list(sizes), options.stages, gpu_flags) if group]
    most = trials_of(groups, sizes, budget)
    middle = {name: domain.draw(0.5) for name, domain in space.domains.items()}
    *shares, jointly = by_stage(tried, groups, most, middle)
    joint = _modelled(options, space, sampler, seed, jointly)
    encode_all = joint.encoding.encode
    stages = []
    for number, (group, share) in enumerate(zip(groups, shares, strict=True)):
        searcher = _modelled(options, space.only(group), sampler, seed + 1 + number, share).searcher
        over = any(shares[number + 1 :]) or jointly
        stages.append(Stage(searcher, len(share) if over else most[number], list(map(encode_all, share))))
    assert isinstance(joint.searcher, OptunaSearch)
    return Inner(
        StagedSearcher(stages, joint.searcher, encode_all(middle)), joint.encoding, joint.expected_gain
    )
