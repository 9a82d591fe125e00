"""Wall time follows virtual time without drift, and lateness is told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import pytest

from tuner.engines.simulator.pacing import LATE_BOUND_S, Pacer
from tuner.engines.simulator.request import Request
from tuner.engines.simulator.scheduler import Step
from tuner.engines.simulator.virtual import build


class FakeLoop:
    """An event loop whose timers fire `lag_s` late."""

    def __init__(self, lag_s: float) -> None:
        self.now, self.lag_s = 100.0, lag_s
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Callable[[], None]) -> None:
        self.timers.append((self.now, call))

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        self.timers.append((when, call))

    def run(self) -> None:
        while self.timers:
            when, call = self.timers.pop()
            self.now = max(self.now, when) + self.lag_s
            call()


class Client:
    """Notes when its tokens arrive."""

    def __init__(self, loop: FakeLoop) -> None:
        self.loop, self.times = loop, list[float]()

    def advance(self) -> None:
        self.times.append(self.loop.now)


def serve(lag_s: float) -> tuple[list[float], Pacer, list[Step]]:
    """The arrival times of 200 tokens, with timers that are `lag_s` late."""
    _, _, scheduler = build(["--model-path", "llama-3.2-1b", "--noise", "0"])
    loop, steps = FakeLoop(lag_s), list[Step]()
    pacer = Pacer(scheduler, cast(Any, loop), steps.append)
    client = Client(loop)
    pacer.submit(Request((1, 2, 3), 200), cast(Any, client))
    loop.run()
    return client.times, pacer, steps


def test_late_timers_do_not_add_up() -> None:
    exact, _, steps = serve(0.0)
    late, pacer, _ = serve(0.001)
    assert exact[-1] - 100.0 == pytest.approx(sum(step.duration_s for step in steps))
    assert all(abs(a - b) <= 0.0021 for a, b in zip(exact, late, strict=True))
    assert pacer.late_s == 0


def test_early_timers_are_waited_for() -> None:
    exact, _, _ = serve(0.0)
    early, pacer, _ = serve(-0.0004)  # within half the timers' grain
    assert early[-1] == pytest.approx(exact[-1], abs=0.001)
    assert pacer.late_s == 0


def test_a_host_that_is_too_slow_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        times, pacer, _ = serve(LATE_BOUND_S * 2)
    assert len(times) == 200
    assert pacer.late_s > LATE_BOUND_S
    assert [record.message.split(" by ")[0] for record in caplog.records] == [
        "host too slow: simulated time runs late"
    ]
