"""Wall time follows virtual time: runs the scheduler's steps and delivers each when it would end.

A step's end is an absolute time, the sum of all durations since the engine was last idle, so errors of single
timers (uvloop's have a grain of 1 ms) never add up: a step that is delivered late is followed by one that is
delivered on time. Only a host that falls behind by more than LATE_BOUND_S makes virtual time wait; that is
logged once and counted in `late_s`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tuner.engines.simulator.answers import Answer
from tuner.engines.simulator.request import Request
from tuner.engines.simulator.scheduler import Scheduler, Step

log = logging.getLogger("simulator")

TIMER_GRAIN_S = 1e-3
LATE_BOUND_S = 0.05


class Pacer:
    """Drives one scheduler; `on_step` hears of every step as it is delivered."""

    def __init__(
        self, scheduler: Scheduler, loop: asyncio.AbstractEventLoop, on_step: Callable[[Step], None]
    ) -> None:
        self.late_s = 0.0  # wall time for which virtual time had to wait
        self._scheduler = scheduler
        self._loop = loop
        self._on_step = on_step
        self._origin = loop.time()  # the wall time of virtual time 0
        self._answers: dict[Request, Answer] = {}
        self._step: Step | None = None
        self._end_s = 0.0  # of the step, virtual
        self._starting = False

    @property
    def now(self) -> float:
        """Virtual time."""
        return self._loop.time() - self._origin

    def submit(self, request: Request, answer: Answer) -> None:
        """Queues `request`; ValueError where it can never run."""
        self._scheduler.add(request, self.now)
        self._answers[request] = answer
        if self._step is None and not self._starting:
            self._starting = True  # what else arrives in this turn of the event loop joins the first step
            self._loop.call_soon(self._start)

    def abort(self, request: Request) -> None:
        """The client has gone."""
        if self._answers.pop(request, None) is not None:
            self._scheduler.abort(request)

    def _start(self) -> None:
        self._starting = False
        self._begin(self.now)

    def _begin(self, at_s: float) -> None:
        self._step = step = self._scheduler.step(at_s)
        if step is not None:
            self._end_s = at_s + step.duration_s
            self._loop.call_at(self._origin + self._end_s, self._tick)

    def _tick(self) -> None:
        late = self.now - self._end_s
        if late < -TIMER_GRAIN_S / 2:  # the timer fired early by more than waiting again would miss
            self._loop.call_at(self._origin + self._end_s, self._tick)
            return
        if late > LATE_BOUND_S:
            if self.late_s == 0:
                log.warning("host too slow: simulated time runs late by %.3f s", late)
            self.late_s += late
            self._origin += late
        assert self._step is not None
        self._deliver(self._step)
        self._begin(self._end_s)

    def _deliver(self, step: Step) -> None:
        answers = self._answers
        for request in step.tokens:
            if (answer := answers.get(request)) is not None:
                if request.finish_reason is not None:
                    del answers[request]
                answer.advance()
        for request in step.aborted:
            if (answer := answers.pop(request, None)) is not None:
                answer.advance()
        self._on_step(step)
