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
from tuner.metrics import RequestRecord, summarise
from tuner.report import html, terminal
from tuner.rows import step_row


def marked(ttft_s: float = 0.1, late_s: float | None = None, **changes: Any) -> str | None:
    """The mark of a level whose requests all had this TTFT and this lateness."""
    records = [RequestRecord(0.0, ttft_s, 1.0, 7, 5, late_s=late_s)] * 5
    metrics = summarise(records, window_s=1.0, gpus=1)
    return client_limit(LoadResult(tuple(records), 1.0, **changes), metrics)


@pytest.mark.parametrize(
    ("seen", "mark"),
    [
        ({}, None),
        ({"client_cpu": 0.79, "client_lag_p99_s": 0.0099, "client_lag_s": 0.5}, None),
        ({"client_cpu": 0.91}, "CPU was busy 91%"),
        ({"client_lag_p99_s": 0.012}, "event loop was 12 ms late"),
        ({"client_lag_p99_s": 0.012, "ttft_s": 0.2}, None),
        ({"client_lag_p99_s": 0.004, "ttft_s": 0.001}, None),
        ({"late_s": 0.02}, "sent 20 ms late"),
        ({"held": 3, "late_s": 0.02}, "max_concurrency held 3"),
    ],
)
def test_what_is_marked(seen: dict[str, Any], mark: str | None) -> None:
    found = marked(**seen)
    assert (found is None) if mark is None else (found is not None and mark in found)


def test_a_client_that_is_kept_busy_is_marked() -> None:
    def healthy() -> bool:
        until = time.perf_counter() + 0.24  # nearly all of the time between two looks
        while time.perf_counter() < until:
            pass
        return True

    load = level("D(7,30)", max_requests=2)
    with ScriptedServer(streaming(pause_s=0.05)) as server:
        result = NativeClient().run(Target(server.url, MODEL, {}), load, healthy=healthy, timeout_s=60)
    step = Step(load, result, summarise(result.records, window_s=result.window_s, gpus=1))
    assert result.client_cpu > 0.05  # of a machine that others use too
    assert result.client_lag_p99_s > 0.1
    assert step.client_limit is not None
    assert step_row(step)["client_limit"] == step.client_limit


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
