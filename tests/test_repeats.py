"""What is measured again at a study's end: as often as it takes to tell the best from the lucky."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import studies

from tuner.analysis import Verdict, summary
from tuner.search import StudySearcher, make_searcher
from tuner.search.repeats import due
from tuner.space import config_key
from tuner.task import make_task

Losses = Mapping[str, float]


def repeated(
    first: Losses,
    again: Callable[[str], float],
    *,
    rounds: int = 2,
    baseline: str | None = "base",
    spare: int = 0,
) -> tuple[list[str], dict[str, list[float]]]:
    """All that is measured again after the losses of `first`, in order, and every run; each gives `again`."""
    runs = {key: [loss] for key, loss in first.items()}
    bound = math.inf if baseline is None else first[baseline]
    candidates = [key for key in first if first[key] < bound]
    order: list[str] = []
    done: Counter[str] = Counter()
    while key := due(candidates, runs, {}, done, rounds=rounds, baseline=baseline, spare=spare):
        order.append(key)
        done[key] += 1
        runs[key].append(again(key))
        assert len(order) < 100
    return order, runs


def test_without_noise_the_two_best_and_the_baseline_are_due_in_turn() -> None:
    first = {"base": 1.0, "a": 0.5, "b": 0.6, "c": 0.7, "worse": 1.1}
    order, _ = repeated(first, first.__getitem__, spare=10)
    assert order == ["base", "a", "b", "base", "a", "b"]


def test_nothing_is_due_where_nothing_beats_the_baseline_or_no_rounds_are_asked_for() -> None:
    assert repeated({"base": 1.0, "a": 1.0}, lambda key: 1.0, spare=5)[0] == []
    assert repeated({"base": 1.0, "a": 0.5}, lambda key: 0.5, rounds=0, spare=5)[0] == []


def test_a_lucky_one_gives_way_to_the_next() -> None:
    truth = {"base": 1.0, "lucky": 0.95, "a": 0.5, "b": 0.55, "c": 0.9}
    order, _ = repeated({**truth, "lucky": 0.4}, truth.__getitem__, rounds=3)
    assert order[:3] == ["base", "lucky", "a"]
    assert "b" in order and order.count("lucky") == 1 and "c" not in order


def test_one_that_fails_is_out_and_costs_no_further_trial() -> None:
    first = {"base": 1.0, "a": 0.5, "b": 0.6, "c": 0.7}
    order, _ = repeated(first, lambda key: 2200.0 if key == "a" else first[key])
    assert len(order) == 6 and order.count("a") == 1 and order.count("base") == 2


def test_one_alone_is_repeated_as_often_as_the_baseline() -> None:
    first = {"base": 1.0, "a": 0.5}
    assert repeated(first, first.__getitem__)[0] == ["base", "a", "base", "a"]
    assert repeated({"a": 0.5}, first.__getitem__, baseline=None)[0] == ["a", "a"]


def test_what_is_left_over_goes_where_two_cannot_be_told_apart() -> None:
    rng, truth = np.random.default_rng(3), {"base": 2.0, "a": 0.50, "b": 0.53, "c": 1.2}
    noisy = [repeated(truth, lambda key: truth[key] + 0.1 * rng.normal(), spare=12)[0] for _ in range(20)]
    assert all(len(order) <= 18 and set(order[6:]) <= {"a", "b"} for order in noisy)
    assert sum(len(order) > 6 for order in noisy) >= 10
    quiet, _ = repeated(truth, lambda key: truth[key] + 0.001 * rng.normal(), spare=12)
    assert len(quiet) == 6


def test_more_is_asked_of_a_gain_that_may_be_chance() -> None:
    rng, truth = np.random.default_rng(1), {"base": 1.0, "a": 0.95}
    orders = [repeated(truth, lambda key: truth[key] + 0.05 * rng.normal(), spare=20)[0] for _ in range(20)]
    assert sum(len(order) > 4 for order in orders) >= 10
    assert sum(order[4:].count("base") for order in orders) >= 10


def test_the_answer_is_right_more_often_than_with_two_finalists_chosen_once() -> None:
    rng = np.random.default_rng(0)
    truth = {str(place): 0.07 * place for place in range(12)}

    def right(spare: int) -> float:
        found = 0
        for _ in range(300):
            first = {key: loss + 0.1 * rng.normal() for key, loss in truth.items()}
            order, runs = repeated(
                first, lambda key: truth[key] + 0.1 * rng.normal(), rounds=3, baseline=None, spare=spare
            )
            found += min(set(order), key=lambda key: float(np.mean(runs[key]))) == "0"
        return found / 300

    def once() -> float:
        found = 0
        for _ in range(300):
            first = {key: loss + 0.1 * rng.normal() for key, loss in truth.items()}
            finalists = sorted(first, key=first.__getitem__)[:2]
            again = {key: float(np.mean(truth[key] + 0.1 * rng.normal(size=3))) for key in finalists}
            found += min(again, key=again.__getitem__) == "0"
        return found / 300

    fixed, adaptive, more = once(), right(0), right(10)
    assert fixed < adaptive < more


def verdict(seed: int, best: float, spare: int) -> Verdict:
    """Of a study in which one configuration takes that share of the time of all others, which are equal."""
    grid = studies.grid(studies.PARAMETERS, 8)
    usual: dict[str, Any] = {
        "fails": studies.never_fails,
        "effect": lambda config: best if config == grid[0] else 1.0,
        "drift": 0.03,
        "noise": 0.02,
        "requests": 4,
        "levels": (4,),
        "seed": seed,
    }
    again: list[studies.Config] = []
    while True:
        results = studies.make(grid, repeats=again, **usual).results()
        runs: dict[str, list[float]] = {}
        for row in results.trials.to_dict("records"):
            runs.setdefault(config_key(row["config"]), []).append(row["loss"])
        better = [key for key in runs if runs[key][0] < runs["{}"][0]]
        done = Counter(map(config_key, again))
        key = due(better, runs, {}, done, rounds=2, baseline="{}", spare=spare)
        if key is None:
            return summary(results).verdict
        again.append(json.loads(key))


def test_chance_is_not_called_a_gain_however_often_it_is_asked() -> None:
    """Equal configurations, repeats until they seem told apart, and the answer as a study gives it."""
    found = [verdict(seed, best=1.0, spare=10) for seed in range(30)]
    assert found.count(Verdict.BETTER) <= 3


def test_a_gain_that_is_not_sure_is_measured_on_until_it_is() -> None:
    at_once, measured_on = (
        [verdict(seed, best=0.93, spare=spare) for seed in range(24)].count(Verdict.BETTER)
        for spare in (0, 10)
    )
    assert measured_on >= 15 and measured_on >= at_once + 4


def play(noise: float, **optimization: Any) -> tuple[StudySearcher, list[dict[str, Any]]]:
    """A study of 60 configurations whose measurements are off by `noise`."""
    space = {"x": list(range(10)), "y": list(range(6))}
    usual = {"max_iterations": 30, "confirm": 2, "early_stopping": False}
    task = make_task({"parameters": space, "optimization": {**usual, **optimization}})
    searcher, rng = make_searcher(task, seed=1), np.random.default_rng(5)
    trials: list[dict[str, Any]] = []
    while isinstance(found := searcher.suggest(str(len(trials))), dict):
        trials.append(found)
        flags = found["flags"] or {"x": 0, "y": 0}
        loss = 0.01 * ((flags["x"] - 6) ** 2 + (flags["y"] - 3) ** 2) + noise * rng.normal()
        result = {"loss": loss, "elapsed_s": 36.0}
        searcher.on_trial_complete(str(len(trials) - 1), result)
    return searcher, trials


def test_a_study_spends_on_repeats_what_its_search_left_over_and_no_more() -> None:
    searcher, trials = play(0.1)
    again = [trial for trial in trials if trial["kind"] == "confirm"]
    assert searcher.ended_early and len(again) > 6 and len(trials) <= 36 == searcher.planned
    searcher, trials = play(0.0)
    again = [trial for trial in trials if trial["kind"] == "confirm"]
    assert searcher.ended_early and len(again) == 6
    searcher, trials = play(0.1, max_time=1e-9)
    assert "max_time" in searcher.ended_early and len(trials) <= 2 + 6


def test_a_best_that_is_found_after_the_repeats_is_repeated_too() -> None:
    """As where a study is resumed with more trials than it began with."""
    small = {"x": list(range(10)), "y": list(range(6))}
    optimization = {"max_iterations": 4, "confirm": 2, "early_stopping": False}
    searcher = make_searcher(make_task({"parameters": small, "optimization": optimization}), seed=1)
    kinds: list[str] = []
    losses: dict[str, float] = {}
    for number in range(40):
        found = searcher.suggest(str(number))
        if not isinstance(found, dict):
            searcher.budget += 1  # one more, and it is the best
            continue
        kinds.append(found["kind"])
        loss = losses.setdefault(config_key(found["flags"]), -float(number))
        searcher.on_trial_complete(str(number), {"loss": loss})
    assert kinds[4:10] == ["confirm"] * 6
    assert kinds[10:17] == ["search", *["confirm"] * 6]


def test_a_study_that_spent_its_budget_has_its_rounds_and_no_more() -> None:
    searcher, trials = play(0.1, convergence={"least_gain": None})
    assert not searcher.ended_early and len(trials) == 36
