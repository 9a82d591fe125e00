"""What is known before a study: told apart by its conditions, and worth trials to the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import studies
from contracts.strategy_contract import Game, bowl

from tuner.engines import make_engine
from tuner.errors import StudyError, UsageError
from tuner.experience import NOTHING, Experience, Known, experience, some_of
from tuner.failures import Cause
from tuner.search import make_searcher
from tuner.search.encoding import encode, optuna_integers
from tuner.search.prior import Prior
from tuner.space import config_key
from tuner.task import Task, make_task


def task_like(made: studies.Made, **sections: Any) -> Task:
    """A task of the conditions of a made-up study, but for `sections`."""
    return make_task({**made.about["task"], **sections})


def known_to(task: Task, root: Path, *names: str, simulate: bool = False) -> Experience:
    return experience(task, make_engine(task), warm_start=names, simulate=simulate, root=root, seed=0)


def test_a_study_of_the_same_conditions_is_data(tmp_path: Path) -> None:
    made = studies.make()
    made.write(tmp_path)
    found = known_to(task_like(made), tmp_path, "llama-tune")
    assert not found.priors
    assert len(found.data) == 24
    losses = {row["loss"] for row in made.trials if row["kind"] == "search"}
    assert {loss for _, loss in found.data} == losses
    assert any(loss > 2000 for loss in losses)  # failures teach too


def test_a_configuration_that_was_repeated_is_known_once(tmp_path: Path) -> None:
    made = studies.make(repeats=[{"tp-size": 2}, {"tp-size": 2}])
    made.write(tmp_path)
    for sections in ({}, {"model": {"id_or_path": "another"}}):
        found = known_to(task_like(made, **sections), tmp_path, "llama-tune")
        (known,) = [found.data, *found.priors] if found.data else found.priors
        keys = [config_key(config) for config, _ in known]
        assert len(keys) == len(set(keys)) == 24


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"id_or_path": "another"}},
        {"slo": {"ttft": {"threshold": 1.0}}},
        {"benchmark": {"num_concurrency": [16]}},
        {"engine": {"args": {"dtype": "half"}}},
    ],
    ids=str,
)
def test_a_study_of_other_conditions_is_a_prior(sections: dict[str, Any], tmp_path: Path) -> None:
    made = studies.make()
    made.write(tmp_path)
    found = known_to(task_like(made, **sections), tmp_path, "llama-tune")
    assert not found.data and [len(prior) for prior in found.priors] == [24]


def test_what_tells_nothing_of_the_space_is_left_out(tmp_path: Path) -> None:
    made = studies.make(fails=lambda config: Cause.NODE_LOST if config.get("tp-size") == 2 else None)
    made.write(tmp_path)
    smaller = {**studies.PARAMETERS, "chunked-prefill-size": [512, 1024]}
    found = known_to(task_like(made, parameters=smaller), tmp_path, "llama-tune")
    assert found.data
    assert all(config["tp-size"] == 1 and config["chunked-prefill-size"] <= 1024 for config, _ in found.data)


@pytest.mark.parametrize("cause", [Cause.NODE_LOST, Cause.NO_SUCH_GPUS])
def test_what_a_cluster_was_the_reason_of_is_left_out(cause: Cause, tmp_path: Path) -> None:
    made = studies.make(fails=lambda config: cause if config.get("tp-size") == 2 else None)
    made.write(tmp_path)
    known = known_to(task_like(made), tmp_path, "llama-tune").data
    assert known and all(config["tp-size"] == 1 for config, _ in known)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"optimization": {"objective": "minimize_ttft"}},
            "was of minimize_latency, this task is of minimize",
        ),
        ({"parameters": {"page-size": [1, 16]}}, "has measured no configuration of this task's space"),
    ],
)
def test_a_study_of_no_use_is_told(sections: dict[str, Any], said: str, tmp_path: Path) -> None:
    made = studies.make()
    made.write(tmp_path)
    with pytest.raises(UsageError, match=f"--warm-start: study llama-tune {said}"):
        known_to(task_like(made, **sections), tmp_path, "llama-tune")
    with pytest.raises(StudyError, match="--warm-start: no study 'other'"):
        known_to(task_like(made), tmp_path, "other")


def test_the_simulator_predicts_a_whole_space(tmp_path: Path) -> None:
    task = make_task(
        {
            "model": {"id_or_path": "llama-3.1-8b-instruct"},
            "parameters": {"tp-size": [1, 2], "mem-fraction-static": [0.1, 0.85]},
            "benchmark": {"max_requests_per_iteration": 8},
        }
    )
    [prior] = known_to(task, tmp_path, simulate=True).priors
    losses = {config_key(config): loss for config, loss in prior}
    assert losses.keys() == {config_key(config) for config in task.space.grid()}
    fast, slow = ({"tp-size": tp, "mem-fraction-static": 0.85} for tp in (2, 1))
    assert losses[config_key(fast)] < losses[config_key(slow)]
    assert losses[config_key({"tp-size": 1, "mem-fraction-static": 0.1})] > 1000


# --- what it is worth to the search --------------------------------------------------------------------

LISTS = {"x": list(range(12)), "y": list(range(12)), "z": ["a", "b", "c"]}
BEST = {"x": 9, "y": 2, "z": "b"}


def bowl_of(flags: Any) -> float:
    return bowl(flags, BEST, LISTS)


def trials_to_the_best(known: Experience, seed: int, **optimization: Any) -> int:
    options = {"max_iterations": 30, "baseline": False, "confirm": 0, "convergence": {"least_gain": None}}
    task = make_task({"parameters": LISTS, "optimization": {**options, **optimization}})
    flags = Game(make_searcher(task, seed=seed, known=known), bowl_of).flags
    return flags.index(BEST) + 1 if BEST in flags else 31


def some(count: int, seed: int, *, noise: float = 0.0, scale: float = 1.0) -> Known:
    rng = np.random.default_rng(seed)
    chosen = [
        {name: values[rng.integers(len(values))] for name, values in LISTS.items()} for _ in range(count)
    ]
    return [(config, scale * bowl_of(config) + float(rng.normal(0, noise))) for config in chosen]


def test_earlier_trials_and_priors_are_worth_trials() -> None:
    cold = [trials_to_the_best(NOTHING, seed) for seed in range(4)]
    warm = [trials_to_the_best(Experience(some(25, seed), []), seed) for seed in range(4)]
    led = [
        trials_to_the_best(Experience([], [some(40, seed, noise=0.3, scale=2.0)]), seed) for seed in range(4)
    ]
    assert sum(warm) < sum(cold), (warm, cold)
    assert sum(led) < sum(cold), (led, cold)


def test_the_best_of_earlier_trials_are_measured_first() -> None:
    data = some(25, 1)
    ranked = [config for config, _ in sorted(data, key=lambda each: each[1])]
    for sampler in ("gp", "tpe"):
        task = make_task({"parameters": LISTS, "optimization": {"sampler": sampler, "max_iterations": 4}})
        flags = Game(make_searcher(task, seed=1, known=Experience(data, [])), bowl_of).flags
        assert flags[:2] == ranked[:2]


def test_a_prior_that_misleads_loses_its_weight_and_any_fades() -> None:
    task = make_task({"parameters": LISTS})
    encoding = encode(task.space, integers=optuna_integers)
    every = encoding.points(list(task.space.grid()))
    points = encoding.points([config for config, _ in some(4, 3)])
    nothing, prior = Prior(task.space, encoding), Prior(task.space, encoding, [some(60, 0)])
    first = prior(every)
    assert np.corrcoef(first, [bowl_of(config) for config in task.space.grid()])[0, 1] > 0.8

    def left(count: int, losses: np.ndarray) -> float:
        """How much of what was known `count` trials leave."""
        prior.told(points[:count], losses[:count], every)
        known = np.ptp(prior(every) - nothing(every))
        return float(known / np.ptp(first)) if known > 1e-9 else 0.0

    said = prior(points)
    by_count = [left(count, said) for count in (1, 2, 3, 4)]
    assert by_count == sorted(by_count, reverse=True) and by_count[-1] > 0.2
    assert left(4, 3 * said) > by_count[-1] > left(4, np.zeros(4)) > left(4, -said)
    many = encoding.points([config for config, _ in some(10, 4)])
    prior.told(many, np.arange(10.0), every)
    assert np.array_equal(prior(every), nothing(every))


@pytest.mark.parametrize(
    ("optimization", "known", "said"),
    [
        ({"strategy": "random"}, Experience(some(3, 0), []), "need the strategy bayesian or hybrid"),
        ({"strategy": "grid"}, Experience([], [some(3, 0)]), "need the strategy bayesian or hybrid"),
        ({"sampler": "hyperopt"}, Experience(some(3, 0), []), "the sampler auto, gp or tpe"),
        ({"sampler": "tpe"}, Experience([], [some(3, 0)]), "only the sampler gp can use a prior"),
    ],
)
def test_a_search_that_cannot_be_told_says_so(optimization: Any, known: Experience, said: str) -> None:
    task = make_task({"parameters": LISTS, "optimization": optimization})
    with pytest.raises(UsageError, match=said):
        make_searcher(task, seed=0, known=known)


def test_a_prior_is_of_what_constraints_leave_however_little_that_is() -> None:
    parameters = {"a": {"type": "float", "low": 0.0, "high": 1.0}, "b": [1, 2]}
    rule = {"when": {"b": [1, 2]}, "require": {"a": {"low": 0.4, "high": 0.405}}}
    little = make_task({"parameters": parameters, "constraints": [rule]}).space
    assert all(some_of(little, seed) for seed in range(5))
    rule["require"] = {"a": {"low": 0.40001, "high": 0.40002}}
    with pytest.raises(UsageError, match="constraints"):
        some_of(make_task({"parameters": parameters, "constraints": [rule]}).space, 0)


@pytest.mark.parametrize(
    ("domain", "value"), [([1, 2, 4], 2.0), ({"type": "float", "low": 0.5, "high": 2.0, "step": 0.5}, 1)]
)
def test_a_number_that_another_study_wrote_otherwise_is_known(domain: Any, value: float) -> None:
    task = make_task({"parameters": {"a": domain, "b": [1, 2, 3]}, "optimization": {"max_iterations": 5}})
    searcher = make_searcher(task, seed=0, known=Experience([({"a": value, "b": 1}, 0.5)], []))
    assert Game(searcher, lambda flags: 1.0).flags[0] == {"a": value, "b": 1}
