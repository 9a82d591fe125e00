"""A load level that was measured while the client was the limit is marked, and the report says so."""

from __future__ import annotations

import time
from typing import Any

import pytest
import studies
from contracts.load_contract import MODEL, level
from contracts.scripted_server import ScriptedServer, streaming
from rich.console import Console

from tuner.load.base import LoadResult, Target
from tuner.load.client import NativeClient
from tuner.load.limit import client_limit
from tuner.measure import Step
from tuner.metrics import Distribution, RequestRecord, summarise
from tuner.objective import Steering
from tuner.report import html, terminal
from tuner.report.words import limit_text
from tuner.rows import step_row
from tuner.task import make_task

E2E, TTFT, TPOT, TTFT_P99 = ("latency", "mean"), ("ttft", "mean"), ("tpot", "mean"), ("ttft", "p99")


def lags(mean_ms: float, p99_ms: float) -> Distribution:
    """How late a loop was."""
    mean, p99 = mean_ms / 1e3, p99_ms / 1e3
    return Distribution(mean, mean, p99, p99, p99, 1000)


def marked(
    *steering: Steering, ttft_s: float = 0.1, e2e_s: float = 1.0, late_s: float | None = None, **changes: Any
) -> str | None:
    """The mark of a level whose requests were all alike, for one who is steered by this."""
    records = [RequestRecord(0.0, ttft_s, e2e_s, 7, 5, late_s=late_s)] * 5
    metrics = summarise(records, window_s=1.0, gpus=1)
    return client_limit(LoadResult(tuple(records), 1.0, **changes), metrics, steering or (E2E,))


@pytest.mark.parametrize(
    ("steering", "seen", "mark"),
    [
        (E2E, {}, None),
        (E2E, {"client_cpu": 0.79, "client_lag_s": 0.5}, None),
        (E2E, {"client_cpu": 0.91}, "CPU was busy 91%"),
        (E2E, {"held": 3}, "max_concurrency held 3"),
        (TTFT, {"client_lag": lags(6, 8)}, "event loop was 6.0 ms late (mean), 6% of ttft mean"),
        (TTFT, {"client_lag": lags(2, 30)}, None),
        (E2E, {"client_lag": lags(6, 300)}, None),
        (E2E, {"client_lag": lags(60, 300)}, "60.0 ms late (mean), 6% of latency mean"),
        (TPOT, {"client_lag": lags(20, 300)}, None),  # of 0.9 s between the first token and the last
        (TPOT, {"client_lag": lags(60, 300)}, "7% of tpot mean"),
        (TTFT_P99, {"client_lag": lags(4, 9)}, None),
        (TTFT_P99, {"client_lag": lags(4, 12)}, "event loop was 12.0 ms late (p99), 12% of ttft p99"),
        (TTFT, {"client_lag": lags(0.4, 4), "ttft_s": 0.004}, None),  # a quiet machine's
        (TTFT, {"client_lag": lags(0.6, 4), "ttft_s": 0.004}, "15% of ttft"),
        (TTFT_P99, {"client_lag": lags(0.4, 4), "ttft_s": 0.004}, None),
        (E2E, {"client_lag": lags(0.6, 4), "ttft_s": 0.004}, None),
        (TTFT, {"late_s": 0.02}, "requests were sent 20.0 ms late (mean), 20% of ttft"),
        (E2E, {"late_s": 0.02}, None),
    ],
)
def test_what_is_marked_is_what_decisions_hang_on(
    steering: Steering, seen: dict[str, Any], mark: str | None
) -> None:
    found = marked(steering, **seen)
    assert (found is None) if mark is None else (found is not None and mark in found)


def test_the_worst_of_several_is_named() -> None:
    found = marked(E2E, TTFT_P99, TTFT, client_lag=lags(20, 15), late_s=0.01)
    assert found is not None and "event loop was 20.0 ms late (mean), 20% of ttft mean" in found


def test_no_request_that_succeeded_no_mark() -> None:
    nothing = summarise([], window_s=1.0, gpus=1)
    assert client_limit(LoadResult((), 1.0, client_lag=lags(60, 60)), nothing, (E2E, TPOT)) is None


def test_a_task_is_steered_by_its_objectives_and_its_promises() -> None:
    objective = {"objective": ["minimize_ttft", "maximize_throughput"]}
    slo = {"tpot": {"threshold": 1.0}, "ttft": {"p99": {"threshold": 1}, "mean": {"threshold": 1}}}
    assert make_task({}).steering == (E2E,)
    assert set(make_task({"optimization": objective, "slo": slo}).steering) == {TTFT, E2E, TPOT, TTFT_P99}


def test_a_client_that_is_kept_busy_is_marked() -> None:
    def healthy() -> bool:
        until = time.perf_counter() + 0.24  # nearly all of the time between two looks
        while time.perf_counter() < until:
            pass
        return True

    load = level("D(7,30)", max_requests=2)
    with ScriptedServer(streaming(pause_s=0.05)) as server:
        result = NativeClient().run(Target(server.url, MODEL, {}), load, healthy=healthy, timeout_s=60)
    metrics = summarise(result.records, window_s=result.window_s, gpus=1)
    assert result.client_cpu > 0.05  # of a machine that others use too
    assert result.client_lag is not None and result.client_lag.p99 > 0.1
    mark = client_limit(result, metrics, (TTFT,))
    assert mark is not None
    step = Step(load, result, metrics, client_limit=mark)
    assert step_row(step)["client_limit"] == mark
    assert step_row(step)["client_lag_mean_s"] == result.client_lag.mean


def test_a_long_delay_counts_for_as_long_as_it_lasted() -> None:
    asked = []

    def healthy() -> bool:
        asked.append(time.perf_counter())
        if len(asked) == 2:
            time.sleep(0.5)
        return True

    load = level("D(7,20)", max_requests=2)
    with ScriptedServer(streaming(pause_s=0.05)) as server:
        result = NativeClient().run(Target(server.url, MODEL, {}), load, healthy=healthy, timeout_s=60)
    assert result.client_lag is not None
    assert result.client_lag.mean > 0.5 * 0.5 * (0.5 / result.window_s) / 2  # of a triangle, with some room
    assert result.client_lag.n >= 25


def test_the_report_tells_of_marked_levels() -> None:
    results = studies.make().results()
    console = Console(width=200, record=True)
    console.print(terminal(results, None))
    assert "load client" not in console.export_text()
    results.steps.loc[2, "client_limit"] = "its <CPU> was busy"
    console.print(terminal(results, None))
    said = f"In 1 of {len(results.steps)} load levels the load client was the limit"
    assert said in console.export_text()
    assert said in html(results, None) and "<CPU>" not in html(results, None)


def test_an_engine_that_falls_behind_a_rate_is_not_said_to_want_cpu() -> None:
    results = studies.make().results()
    results.steps.loc[[2, 3], "client_limit"] = [marked(held=368), "its CPU was busy 90% of the time"]
    console = Console(width=400, record=True)
    console.print(terminal(results, None))
    shown = console.export_text()
    every = len(results.steps)
    assert f"In 1 of {every} load levels the engine fell behind the rate (trial 1): max_conc" in shown
    assert f"In 1 of {every} load levels the load client was the limit, not the engine (trial 1)" in shown
    assert shown.count("Give it more CPU") == 1 and "raise benchmark.max_concurrency" in shown


def test_each_mark_is_told_in_its_own_words() -> None:
    assert limit_text(str(marked(held=3))).startswith(
        "the engine fell behind the rate: max_concurrency held 3"
    )
    assert limit_text("its CPU was busy").startswith("the load client was the limit: its CPU")
