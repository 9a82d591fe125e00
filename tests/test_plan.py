"""What a task will cost, and what is advised for it."""

from __future__ import annotations

from typing import Any

import pytest

from tuner.plan import GP_TRIALS, advise, advise_as_measured, planned_repeats, planned_trials, sampler_of
from tuner.task import make_task


def task_with(size: int, **optimization: Any) -> Any:
    return make_task({"parameters": {"x": list(range(size))}, "optimization": optimization})


@pytest.mark.parametrize(
    ("size", "strategy", "fewest", "most"),
    [
        (5, "grid_search", 5, 5),
        (30, "bayesian", 20, 30),
        (120, "bayesian", 30, 50),
        (999, "bayesian", 50, 100),
    ],
)
def test_the_documents_rules(size: int, strategy: str, fewest: int, most: int) -> None:
    advice = advise(task_with(size))
    assert advice.strategy == strategy
    assert fewest <= advice.trials <= most


def test_what_was_measured_needs_no_more_trials_for_a_larger_space() -> None:
    assert advise_as_measured(task_with(GP_TRIALS)).strategy == "grid_search"
    for size in (GP_TRIALS + 1, 5000):
        advice = advise_as_measured(task_with(size))
        assert (advice.strategy, advice.trials) == ("bayesian", GP_TRIALS)


@pytest.mark.parametrize(
    ("size", "optimization", "name"),
    [
        (50, {}, "gp"),
        (50, {"strategy": "hybrid"}, "gp"),
        (50, {"strategy": "random"}, "random"),
        (50, {"sampler": "tpe"}, "tpe"),
        (500, {"max_iterations": 1000}, "tpe"),
        (50, {"max_iterations": 1000}, "gp"),  # of which 51 are run at the most
        (500, {"max_iterations": 1000, "sampler": "gp"}, "gp"),
    ],
)
def test_auto_takes_a_sampler_and_says_why(size: int, optimization: dict[str, Any], name: str) -> None:
    found = sampler_of(task_with(size, **optimization))
    assert found.name == name
    assert found.reason


def test_a_search_is_no_longer_than_its_space() -> None:
    assert planned_trials(task_with(7)) == 8
    assert planned_trials(task_with(7, baseline=False, max_iterations=5)) == 5
    assert planned_trials(task_with(500, strategy="grid")) == 501


def test_repeats_are_of_the_finalists_that_there_are_and_of_the_baseline_that_runs() -> None:
    assert [planned_repeats(2, count, baseline=True) for count in (0, 1, 2, 9)] == [0, 4, 6, 6]
    assert [planned_repeats(2, count, baseline=False) for count in (0, 1, 2, 9)] == [0, 2, 4, 4]
