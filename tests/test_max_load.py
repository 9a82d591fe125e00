"""The search for the highest load within the SLOs: few levels, monotone, and not led astray by noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluate import BAD, ScriptedLoad, run

from tuner.capacity import Capacity
from tuner.engines import make_engine
from tuner.errors import TaskError
from tuner.evaluate import scores
from tuner.failures import Cause, Failure, Stage
from tuner.levels import levels_of
from tuner.metrics import Metrics, RequestRecord, summarise
from tuner.plan import trial_guess_s
from tuner.recorder import Recorder
from tuner.results import ResultStore
from tuner.rows import TrialInfo
from tuner.suggestion import ATTEMPTS, ELAPSED, METRIC, SHARE, Suggestion
from tuner.task import Task, make_task
from tuner.workload import LoadLevel


def task(low: float = 4, high: float = 256, **load: Any) -> Task:
    """TTFT below a second, between two concurrencies or (`rate=True`) rates."""
    loads = {"request_rate": [low, high]} if load.pop("rate", False) else {"num_concurrency": [high, low]}
    return make_task(
        {
            "optimization": {"objective": "maximize_throughput"},
            "slo": {"ttft": {"mean": {"threshold": 1.0}}},
            "benchmark": {"find": "max_load", **loads, **load},
        }
    )


def search(task: Task, ttft_s: Callable[[LoadLevel], float | None]) -> tuple[float | None, list[LoadLevel]]:
    """(the load that is found, the levels that were measured) of a server with such a TTFT."""
    levels, seen = levels_of(task, 0), []
    while (level := levels.next()) is not None:
        seen.append(level)
        ttft = ttft_s(level)
        record = None if ttft is None else RequestRecord(0.0, ttft, ttft + 1, 10, 10)
        levels.saw(None if record is None else summarise([record], window_s=1.0, gpus=1))
    assert len(seen) <= levels.most
    return min(levels.max_loads.values(), default=None), seen


@pytest.mark.parametrize("border", [5, 17, 40, 100, 255])
def test_it_comes_within_a_tenth_of_the_border_in_few_levels(border: int) -> None:
    found, seen = search(task(), lambda level: level.concurrency / (border + 0.5))
    assert found is not None and border / 1.1 - 1 <= found <= border
    assert [level.concurrency for level in seen[:2]] == [4, 256]
    assert len(seen) <= 12
    assert all(level.warmup_requests == level.concurrency for level in seen)


def test_rates_are_searched_as_well() -> None:
    found, seen = search(task(0.5, 20.0, rate=True), lambda level: (level.request_rate or 0) / 7.3)
    assert found is not None and 7.3 / 1.1 <= found <= 7.3
    assert {level.concurrency for level in seen} == {1024}


def test_the_bounds_end_it_at_once() -> None:
    assert search(task(), lambda level: 0.1)[0] == 256
    found, seen = search(task(), lambda level: 3.0)
    assert (found, len(seen)) == (0.0, 1)


def test_a_load_that_is_refused_is_too_much() -> None:
    found, _ = search(task(), lambda level: 0.1 if level.concurrency <= 60 else None)
    assert found is not None and 54 <= found <= 60


def test_near_the_border_it_looks_twice_with_other_prompts() -> None:
    found, seen = search(task(100, 200), lambda level: 1.01 if level.seed == 0 else 0.97)
    assert [level.seed for level in seen[:4]] == [0, 1, 0, 1]
    assert found == 200


def test_noise_moves_what_is_found_little() -> None:
    rng, off = np.random.default_rng(3), []
    for _ in range(60):
        found, _ = search(task(), lambda level: level.concurrency / 80.5 * math.exp(rng.normal(0, 0.02)))
        assert found
        off.append(abs(math.log(found / 80)))
    assert np.quantile(off, 0.9) < math.log(1.15)


def test_a_trial_is_scored_by_the_load_that_was_found(tmp_path: Path) -> None:
    def answer(level: LoadLevel) -> list[RequestRecord]:
        if level.concurrency > 12:
            return [BAD] * 4
        return [RequestRecord(0.0, 0.1 * level.concurrency, 0.2 + 0.1 * level.concurrency, 10, 10)] * 3

    reports = run(task(1, 32), tmp_path, load=ScriptedLoad(answer))
    last = reports[-1]
    assert last.failure is None and last.done
    [load] = last.max_loads.values()
    assert 9 <= load <= 10
    steps = [report.step for report in reports if report.step is not None]
    assert last.finished == last.planned == len(steps) == len({id(step) for step in steps})
    [found] = {step.metrics.total_tok_s for step in steps if step.level.concurrency == load}
    assert last.score.objective == last.score.score == pytest.approx(found)
    assert last.score.slo.met


def test_the_lowest_load_that_is_refused_is_a_failure(tmp_path: Path) -> None:
    [last] = run(task(1, 32), tmp_path, load=ScriptedLoad(lambda level: [BAD] * 4))
    assert last.failure is not None and not last.max_loads


def test_a_trial_that_is_refused_or_lost_has_as_many_levels_as_one_that_runs(tmp_path: Path) -> None:
    def answer(level: LoadLevel) -> list[RequestRecord]:
        return [RequestRecord(0.0, level.concurrency / 7.5, 20.0, 10, 10)] * level.concurrency

    searching = task()
    reports = run(searching, tmp_path, load=ScriptedLoad(answer))[:-1]
    most = levels_of(searching, 0).most
    assert {report.planned for report in reports} == {most} and len(reports) > 2
    store = ResultStore(tmp_path, "s")
    store.create({})
    recorder = Recorder(store, searching, make_engine(searching), Capacity(), lambda: 9, lambda: "", None)
    recorder.refused(Suggestion(0, "search", {}), Failure(Stage.CHECK, Cause.NO_SUCH_GPUS, "none has 16"))

    config = {"number": 1, "kind": "search", "flags": {}, "attempt": ATTEMPTS}
    lost: Any = SimpleNamespace(trial_id="t", status="ERROR", pickled_error_file=None, config=config)
    recorder.on_trial_start(0, [], lost)
    info = TrialInfo(1, "search", {}, [], datetime.now(UTC), 0.0, "node", "")
    for report in reports:
        told = {"info": info, "report": report, ELAPSED: 1.0, SHARE: report.share, METRIC: 0.0}
        recorder.on_trial_result(0, [], lost, told)
    recorder.on_trial_error(0, [], lost)
    found = store.read().trials
    assert list(found["levels_planned"]) == [most, most]
    assert list(found["levels_finished"]) == [0, len(reports)]
    assert list(found["failure_progress"]) == [0.0, len(reports) / most]


# Several scenarios.


def test_each_scenario_has_a_search_of_its_own() -> None:
    border = {"D(1,2)": 20.5, "D(9,2)": 7.5}
    levels = levels_of(task(traffic_scenarios=list(border)), 0)
    seen: dict[str, list[int]] = {}
    while (level := levels.next()) is not None:
        scenario = str(level.scenario)
        seen.setdefault(scenario, []).append(level.concurrency)
        ttft_s = level.concurrency / border[scenario]
        levels.saw(summarise([RequestRecord(0.0, ttft_s, ttft_s + 1, 10, 10)], window_s=1.0, gpus=1))
    assert list(seen) == list(border)
    assert all(loads[:2] == [4, 256] for loads in seen.values())
    assert 18 <= levels.max_loads["D(1,2)"] <= 20 and levels.max_loads["D(9,2)"] == 7
    ttfts = sorted(metrics.ttft.mean for metrics in levels.judged if metrics.ttft)
    assert ttfts == pytest.approx(sorted(load / border[s] for s, load in levels.max_loads.items()))


def test_a_trial_is_scored_by_what_every_scenario_found(tmp_path: Path) -> None:
    def answer(level: LoadLevel) -> list[RequestRecord]:
        longer = str(level.scenario) == "D(9,2)"
        ttft_s = level.concurrency / (4.5 if longer else 20.5)
        return [RequestRecord(0.0, ttft_s, ttft_s + 1, 10, 10)] * level.concurrency

    reports = run(task(1, 32, traffic_scenarios=["D(1,2)", "D(9,2)"]), tmp_path, load=ScriptedLoad(answer))
    last = reports[-1]
    assert last.failure is None and last.score.slo.met
    assert last.max_loads["D(1,2)"] >= 19 and last.max_loads["D(9,2)"] == 4
    found = {
        str(step.level.scenario): step.metrics.total_tok_s
        for step in (report.step for report in reports)
        if step is not None and last.max_loads[str(step.level.scenario)] == step.level.concurrency
    }
    assert last.score.objective == pytest.approx(sum(found.values()) / 2)


def test_a_later_scenario_whose_lowest_load_is_refused_is_a_failure(tmp_path: Path) -> None:
    def answer(level: LoadLevel) -> list[RequestRecord]:
        return [BAD] * 4 if str(level.scenario) == "D(9,2)" else [RequestRecord(0.0, 0.1, 0.2, 10, 10)] * 3

    *_, last = run(task(1, 32, traffic_scenarios=["D(1,2)", "D(9,2)"]), tmp_path, load=ScriptedLoad(answer))
    assert last.failure is not None and not last.max_loads
    assert last.failure.progress == pytest.approx(last.finished / last.planned) and last.finished == 2


def test_the_same_scenario_twice_is_searched_once() -> None:
    assert levels_of(task(traffic_scenarios=["D(1,2)", "D(1,2)"]), 0).most == levels_of(task(), 0).most


def shown(ttft_s: float) -> Metrics:
    return summarise([RequestRecord(0.0, ttft_s, 9.0, 10, 10)], window_s=1.0, gpus=1)


def test_no_search_has_more_levels_than_it_says_wherever_the_border_is() -> None:
    kept, broke, counts = shown(0.99), shown(1.005), set()  # each so near that it is looked at twice
    for border in range(8, 2048):
        levels, seen = levels_of(task(7, 2047), 0), 0
        while (level := levels.next()) is not None:
            seen += 1
            levels.saw(kept if level.concurrency < border else broke)
        counts.add(seen)
    assert max(counts) == levels.most


@pytest.mark.parametrize(("ttft_s", "max_load"), [(0.99, 7.0), (1.005, 0.0)])
def test_the_lowest_load_that_is_served_once_and_then_refused_is_an_answer(
    ttft_s: float, max_load: float
) -> None:
    levels = levels_of(task(7, 2047), 0)
    for look in (shown(ttft_s), None):
        assert levels.next() is not None
        levels.saw(look)
    assert levels.max_loads == {"D(100,100)": max_load}
    score = scores(task(), levels.judged)[0]
    assert math.isfinite(score.loss) and score.slo.met == (max_load > 0)
    assert (levels.next() is None) == (max_load == 0)


@settings(max_examples=300)
@given(
    bounds=st.lists(st.integers(1, 4096), min_size=2, max_size=5, unique=True),
    ttfts=st.lists(st.sampled_from([0.5, 0.99, 1.005, 2.0, None]), min_size=60, max_size=60),
)
def test_no_server_makes_it_measure_more_levels_than_it_says(
    bounds: list[int], ttfts: list[float | None]
) -> None:
    load = {"traffic_scenarios": ["D(1,2)", "D(9,2)"], "num_concurrency": bounds}
    levels, answers = levels_of(task(**load), 0), iter(ttfts)
    seen, refused = 0, False
    while not refused and levels.next() is not None:
        seen += 1
        ttft_s = next(answers)
        refused = ttft_s is None and not levels.may_be_refused
        levels.saw(None if ttft_s is None else shown(ttft_s))
    assert seen <= levels.most
    assert refused or math.isfinite(scores(task(**load), levels.judged)[0].loss)
    assert all(load == 0 or min(bounds) <= load <= max(bounds) for load in levels.max_loads.values())


def test_what_it_needs_is_asked_for() -> None:
    load = {"find": "max_load", "num_concurrency": [4]}
    with pytest.raises(TaskError) as refused:
        make_task({"benchmark": load})
    for words in ("give slo", "a lowest and a highest", "that is maximised"):
        assert words in str(refused.value)
    assert trial_guess_s(task(), "simulator") > 0
