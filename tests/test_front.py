"""Several objectives: the front is what nothing beats in all, and its knee is what is recommended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import studies
from hypothesis import given
from hypothesis import strategies as st

from tuner.analysis import summary
from tuner.analysis.front import from_the_knee, front
from tuner.errors import TaskError, UsageError
from tuner.experience import Experience
from tuner.failures import Cause
from tuner.search import make_searcher
from tuner.suggestion import metric_names
from tuner.task import make_task

POINTS = st.lists(st.lists(st.floats(-9, 9), min_size=2, max_size=2), min_size=1, max_size=9)


@given(POINTS)
def test_nothing_beats_the_front_and_the_front_beats_the_rest(points: list[list[float]]) -> None:
    def beats(one: list[float], other: list[float]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    on_it = front(points)
    assert any(on_it)
    for point, there in zip(points, on_it, strict=True):
        assert there != any(beats(other, point) for other in points)
    assert sorted(from_the_knee(points)) == [place for place, there in enumerate(on_it) if there]


def test_the_knee_is_the_point_nearest_to_the_best_of_everything() -> None:
    points = [[0.0, 10.0], [1.0, 1.0], [10.0, 0.0], [9.0, 9.0]]
    assert from_the_knee(points) == [1, 0, 2]
    assert from_the_knee([]) == []
    assert from_the_knee([[3.0], [1.0], [2.0]]) == [1]
    assert from_the_knee([[0.0, 0.7], [0.04, 0.0]]) == [1, 0]  # 4 % more of one for 50 % less of the other


@pytest.mark.parametrize("repeats", [[], [{}, {"tp-size": 2}] * 2])
def test_the_defaults_are_recommended_where_they_are_the_knee(repeats: list[dict[str, Any]]) -> None:
    made = studies.make([{"tp-size": 2}, {"tp-size": 4}], repeats=repeats, fails=studies.never_fails)
    losses = {None: (1.0, 1.0), 2: (0.96, 1.7), 4: (1.2, 1.2)}
    made.with_objectives(lambda config: losses[config.get("tp-size")], *SEVERAL)
    answer = summary(made.results())
    assert [trial["trial"] for trial in answer.front] == [0, 1]
    assert answer.defaults_are_best and "knee of the front" in answer.reason


def test_what_failed_when_repeated_does_not_shift_the_knee_to_another() -> None:
    lost, knee, other = {"tp-size": 1}, {"tp-size": 2}, {"tp-size": 4}
    made = studies.make([lost, other, knee], repeats=[knee, other, lost], fails=studies.never_fails)
    losses = {None: (3.0, 3.0), 1: (0.1, 0.1), 2: (1.0, 1.0), 4: (0.5, 2.9)}
    made.with_objectives(lambda config: losses[config.get("tp-size")], *SEVERAL)
    made.trials[-1] |= {"failure_cause": str(Cause.OUT_OF_MEMORY), "failure_stage": "load"}
    best = summary(made.results()).best
    assert best is not None and best["config"] == knee


# --- the search ----------------------------------------------------------------------------------------

LISTS = {"x": list(range(10)), "y": list(range(10))}
SEVERAL = ["minimize_ttft", "maximize_throughput"]


def task_of(**optimization: Any) -> Any:
    options = {"objective": SEVERAL, "max_iterations": 30, "confirm": 0, **optimization}
    return make_task({"parameters": LISTS, "optimization": options})


def play(task: Any, seed: int) -> tuple[Any, list[dict[str, Any]]]:
    searcher = make_searcher(task, seed=seed)
    trials: list[dict[str, Any]] = []
    while isinstance(found := searcher.suggest(str(len(trials))), dict):
        trials.append(found)
        flags = found["flags"] or {"x": 9, "y": 0}
        away = abs(flags["y"] - 5)
        losses = {"loss": flags["x"] + away, "loss_2": 9 - flags["x"] + away}
        searcher.on_trial_complete(str(len(trials) - 1), losses)
    return searcher, trials


@pytest.mark.parametrize("strategy", ["bayesian", "hybrid", "random"])
def test_a_search_for_a_front_spends_its_budget_and_finds_both_ends(strategy: str) -> None:
    _, trials = play(task_of(strategy=strategy), 1)
    assert len(trials) == 30
    xs = {trial["flags"].get("x") for trial in trials}
    assert min(x for x in xs if x is not None) <= 2 and max(x for x in xs if x is not None) >= 7


def test_tpe_for_two_objectives_is_better_than_luck() -> None:
    def good(strategy: str) -> int:
        runs = [play(task_of(strategy=strategy, max_iterations=60), seed)[1] for seed in range(4)]
        return sum(trial["flags"].get("y") in (4, 5, 6) for trials in runs for trial in trials)

    assert good("bayesian") > good("random")


def test_the_front_is_measured_again_from_its_knee_on() -> None:
    _, trials = play(task_of(confirm=1), 1)
    again = [trial["flags"] for trial in trials if trial["kind"] == "confirm"]
    assert again[0] == {} and len(again) == 3
    searched = [trial["flags"] for trial in trials if trial["kind"] == "search"]
    losses = [
        [flags["x"] + abs(flags["y"] - 5), 9 - flags["x"] + abs(flags["y"] - 5)]
        for flags in [{"x": 9, "y": 0}, *searched]
    ]
    ranked = [place for place in from_the_knee(losses) if place]
    assert again[1:] == [searched[place - 1] for place in ranked[:2]]


@pytest.mark.parametrize(
    ("optimization", "said"),
    [
        ({"sampler": "gp"}, "optimization.sampler.*gp has one objective"),
        ({"sampler": "hyperopt"}, "optimization.sampler.*hyperopt has one objective"),
        ({"strategy": "hierarchical"}, "optimization.strategy.*hierarchical has one objective"),
        (
            {"objective": ["minimize_ttft", "minimize_ttft"]},
            "objective: names minimize_ttft twice",
        ),
        ({"objective": []}, "optimization.objective"),
        ({"objective": ["minimise_ttft"]}, "optimization.objective"),
    ],
)
def test_what_does_not_go_with_several_objectives_is_told(optimization: Any, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        task_of(**optimization)


def test_it_is_never_warm_started() -> None:
    with pytest.raises(UsageError, match="one objective"):
        make_searcher(task_of(), seed=0, known=Experience([({"x": 1, "y": 1}, 1.0)], []))


# --- a study -------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_study_of_two_objectives_reports_its_front(tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    from tuner import run_study
    from tuner.report import html, terminal

    both = ["minimize_latency", "maximize_throughput"]
    task = make_task(
        {
            "model": {"id_or_path": "llama-3.1-8b-instruct"},
            "parameters": {"tp-size": [1, 2, 4, 8], "chunked-prefill-size": [512, 2048]},
            "benchmark": {
                "traffic_scenarios": ["D(500,100)"],
                "num_concurrency": [4],
                "max_requests_per_iteration": 8,
            },
            "optimization": {"objective": both, "max_iterations": 7, "confirm": 1},
        }
    )
    results = run_study(task, results=tmp_path).results
    answer = summary(results)
    assert answer.best is not None and len(answer.front) > 1
    sizes = {trial["gpus"] for trial in answer.front}
    assert len(sizes) > 1  # more GPUs are faster, and cost more for each token
    ended = results.trials[results.trials["kind"] != "confirm"]
    assert all(set(row) == set(both) for row in ended["objectives"])
    sink = StringIO()
    Console(file=sink, width=100).print(terminal(results, None))
    assert "The Pareto front" in sink.getvalue() and "latency (ms)" in sink.getvalue()
    page = html(results, None)
    assert "Pareto front" in page and "knee" in page
    assert metric_names(2) == ("loss", "loss_2")
