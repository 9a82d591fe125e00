"""Loads at a rate: requests are due by arrivals, latencies count from then. Real sockets on loopback."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from contracts.load_contract import MODEL, level
from contracts.scripted_server import Call, ScriptedServer, hanging, status, streaming

from tuner.errors import TaskError
from tuner.load.base import LoadResult, Target
from tuner.load.client import NativeClient
from tuner.metrics import RequestError, summarise
from tuner.prompts import prompts
from tuner.task import make_task
from tuner.workload import LoadLevel, arrivals


def at(rate: float, **changes: Any) -> LoadLevel:
    """A small load level at a rate, with constant arrivals and as many streams as it takes."""
    options = {"request_rate": rate, "arrivals": "constant", "concurrency": 100} | changes
    return replace(level(), **options)


def put(url: str, load: LoadLevel, *, timeout_s: float = 60.0, **limits: Any) -> LoadResult:
    target = Target(url, MODEL, {})
    return NativeClient().run(target, load, healthy=lambda: True, timeout_s=timeout_s, **limits)


# When requests are due.


def due(load: LoadLevel, count: int) -> list[float]:
    return list(itertools.islice(arrivals(load), count))


def test_constant_arrivals_have_equal_gaps() -> None:
    assert due(at(4.0), 4) == pytest.approx([0.0, 0.25, 0.5, 0.75])


def test_poisson_arrivals_have_exponential_gaps_of_the_rate() -> None:
    gaps = np.diff(due(at(5.0, arrivals="poisson"), 4000))
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() == pytest.approx(0.2, rel=0.1)


def test_the_same_seed_has_the_same_arrivals() -> None:
    load = at(5.0, arrivals="poisson")
    assert due(load, 9) == due(load, 9) != due(replace(load, seed=2), 9)
    assert due(load, 9) != due(replace(load, request_rate=5.5), 9)


def test_a_closed_loop_has_none() -> None:
    with pytest.raises(ValueError, match="closed loop"):
        next(arrivals(level()))


def test_another_rate_has_other_prompts() -> None:
    ours, theirs = ({p.text for p in prompts(at(rate))} for rate in (1.0, 2.0))
    assert not ours & theirs


# What is sent, and when.


def test_requests_are_sent_when_due_whatever_became_of_the_others() -> None:
    with ScriptedServer(hanging) as server:
        result = put(server.url, at(50.0, max_requests=10), timeout_s=2.0)
    assert server.most_in_flight == 10
    assert [r.error for r in result.records] == [RequestError.TIMEOUT] * 10
    assert result.held == 0


def test_the_window_is_as_long_as_the_arrivals() -> None:
    with ScriptedServer(streaming()) as server:
        result = put(server.url, at(40.0, max_requests=8))
    assert result.window_s == pytest.approx(8 / 40)
    assert [r.sent_s for r in result.records] == pytest.approx([i / 40 for i in range(8)])
    assert all(r.late_s is not None and r.late_s >= 0 for r in result.records)


def test_the_window_ends_with_the_time_though_all_was_answered_before() -> None:
    with ScriptedServer(streaming()) as server:
        result = put(server.url, at(5.0, max_requests=100, max_time_s=0.5))
    assert len(result.records) == 3
    assert result.window_s == pytest.approx(0.5)


def test_warm_up_requests_come_before_and_are_not_waited_for() -> None:
    load = at(50.0, warmup_requests=3, max_requests=4)
    with ScriptedServer(streaming(pause_s=0.05)) as server:
        result = put(server.url, load)
    assert [call.body["prompt"] for call in server.calls] == [prompt.text for prompt in prompts(load)]
    assert len(result.records) == 4
    assert server.most_in_flight > 3


def test_a_run_that_ends_in_the_warm_up_tells_why() -> None:
    with ScriptedServer(hanging) as server:
        result = put(server.url, at(1.0, warmup_requests=2), timeout_s=0.5)
    assert [r.error for r in result.records] == [RequestError.TIMEOUT]


def test_latency_counts_from_when_a_request_was_due() -> None:
    load = at(100.0, concurrency=1, max_requests=5)
    with ScriptedServer(streaming(pause_s=0.02)) as server:
        result = put(server.url, load)
    assert server.most_in_flight == 1
    assert result.held == 4
    latencies = [r.e2e_s for r in result.records if r.e2e_s is not None]
    assert latencies == sorted(latencies) and len(latencies) == 5
    assert all(r.e2e_s > r.ttft_s > r.late_s for r in result.records)  # type: ignore[operator]
    metrics = summarise(result.records, window_s=result.window_s, gpus=1)
    assert metrics.late is not None and metrics.late.n == 5


def test_requests_that_still_wait_for_room_at_the_end_are_in_the_records() -> None:
    with ScriptedServer(hanging) as server:
        result = put(server.url, at(50.0, concurrency=2, max_requests=6), timeout_s=1.0)
    assert len(server.calls) == 2
    assert [r.error for r in result.records] == [RequestError.TIMEOUT] * 6
    assert result.held == 4


def test_a_server_that_refuses_gets_its_rate_all_the_same() -> None:
    with ScriptedServer(status(503)) as server:
        result = put(server.url, at(100.0, max_requests=10))
    assert {r.error for r in result.records} == {RequestError.HTTP}
    assert len(server.calls) == 10
    assert result.window_s == pytest.approx(0.1)


def test_a_server_that_stops_answering_is_stalled_though_requests_go_on() -> None:
    async def script(call: Call) -> None:
        await (streaming() if call.number < 3 else hanging)(call)

    with ScriptedServer(script) as server:
        result = put(server.url, at(20.0, max_requests=10**6), stall_s=1.0)
    assert result.stalled
    assert len(result.records) > 3


# The task file.


def test_rates_stand_in_place_of_concurrencies() -> None:
    load = {"request_rate": [2, 0.5], "arrivals": "constant", "max_concurrency": 7}
    levels = make_task({"benchmark": load | {"max_requests_per_iteration": 25}}).levels(3)
    assert [(x.request_rate, x.concurrency, x.arrivals, x.warmup_requests) for x in levels] == [
        (2.0, 7, "constant", 9),
        (0.5, 7, "constant", 5),
    ]
    assert [str(x) for x in levels] == ["D(100,100) at 2/s", "D(100,100) at 0.5/s"]


def test_a_rate_lasts_its_time_and_a_stream_sends_ten_requests_where_nothing_is_said() -> None:
    def sizes(**load: Any) -> list[tuple[int, int]]:
        return [(x.max_requests, x.warmup_requests) for x in make_task({"benchmark": load}).levels(3)]

    assert sizes(num_concurrency=[4, 64]) == [(100, 4), (640, 64)]
    assert sizes(num_concurrency=[4, 64], max_requests_per_iteration=50) == [(50, 4), (64, 64)]
    assert sizes(request_rate=[0.01, 20], max_time_per_iteration=60) == [(1, 1), (1200, 400)]
    assert sizes(request_rate=[20], warmup_requests=0, max_requests_per_iteration=7) == [(7, 0)]
    assert sizes(request_rate=[10_000], max_time_per_iteration=3600) == [(1_000_000, 10_000)]


@pytest.mark.parametrize(
    ("load", "problem"),
    [
        ({"request_rate": [1], "num_concurrency": [1]}, "in place of num_concurrency"),
        ({"arrivals": "constant"}, r"benchmark\.arrivals: is for a request_rate"),
        ({"max_concurrency": 3}, r"benchmark\.max_concurrency: is for a request_rate"),
        ({"request_rate": [0]}, "request_rate"),
        ({"request_rate": []}, "request_rate"),
    ],
)
def test_keys_that_do_not_go_together(load: dict[str, Any], problem: str) -> None:
    with pytest.raises(TaskError, match=problem):
        make_task({"benchmark": load})
