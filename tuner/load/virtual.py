"""The load client of a server in virtual time: the native client's loops and windows, without a clock.

Knows nothing of engines: whatever takes calls, makes steps and counts its own time can be loaded. Where the
native client waits, this one lets the server go on, so a level costs only what it computes.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import sub
from typing import Any, Protocol

from tuner.load.base import GLANCES, Glance, LoadResult, Target, completion_call
from tuner.load.client import BACK_OFF_S
from tuner.load.phase import Window, in_order
from tuner.metrics import RequestError, RequestRecord
from tuner.prompts import prompts
from tuner.workload import LoadLevel, arrivals

# What client and server take from the end of an answer to the next request, one after the other. Over HTTP it
# decides whether the first of a batch that ended together is prefilled alone; there it is alone in about half
# of the batches, here always. Chosen so that throughput and TTFT agree with the simulator over HTTP on two
# cores at concurrency 64 (benchmarks/simulator_http.py).
TURN_S = 0.2e-3
_HTTP_OK, _HTTP_FAILED = 200, 500


class Answering(Protocol):
    """A call that the server has taken; `finish_reason` is None until it has ended, `error` why it failed."""

    prompt: Any
    generated: int
    finish_reason: str | None
    error: str


class VirtualServer(Protocol):
    """A server that is driven step by step."""

    now_s: float

    def submit(self, body: bytes, at_s: float) -> Any:
        """Takes a call of /v1/completions at `at_s`: an `Answering`, or the HTTP status of a refusal."""
        ...

    def advance(self, until_s: float) -> Sequence[Any] | None:
        """Moves `now_s` to where clients read something next; the calls that they read it for.

        None where that is not by `until_s`: then it is that, or as it was where there is nothing to do.
        """
        ...

    def abort(self, request: Any) -> None:
        """The client of `request` has gone."""
        ...


class VirtualClient:
    """Puts load levels on the server that `serving` gives."""

    name = "virtual"

    def require(self) -> None:
        """It takes nothing more."""

    def __init__(self, serving: Callable[[], VirtualServer]) -> None:
        self._serving = serving

    def run(
        self,
        target: Target,
        level: LoadLevel,
        *,
        healthy: Callable[[], bool],
        timeout_s: float,
        stall_s: float = math.inf,
        seen: Callable[[Glance], None] | None = None,
    ) -> LoadResult:
        """Puts `level` on the server; see `LoadGenerator.run`. All seconds are the server's."""
        run = _Run(self._serving(), target, level)
        return run.measure(healthy, timeout_s, stall_s, seen)


@dataclass(slots=True, eq=False)
class _Exchange:
    """One request: when it was sent and due, and when something came back for it."""

    phase: _Phase
    number: int
    asked_tokens: int
    sent_s: float
    due_s: float | None
    request: Any = None
    status: int | None = None
    fault: RequestError | None = None
    stamps: array[float] = field(default_factory=lambda: array("d"))

    @property
    def counts_from_s(self) -> float:
        return self.sent_s if self.due_s is None else self.due_s

    def record(self, started_s: float) -> RequestRecord:
        """In a window that started at `started_s`."""
        ok, read = self.fault is None, len(self.stamps) > 0
        return RequestRecord(
            sent_s=self.counts_from_s - started_s,
            ttft_s=self.stamps[0] - self.counts_from_s if read else None,
            e2e_s=self.stamps[-1] - self.counts_from_s if ok else None,
            input_tokens=len(self.request.prompt) if read else 0,
            output_tokens=self.request.generated if read else 0,
            error=self.fault,
            status=self.status,
            late_s=None if self.due_s is None else self.sent_s - self.due_s,
            number=self.number - self.phase.numbers.start,
        )


class _Phase(Window):
    """A window of the server's time, and what has ended of it."""

    def __init__(self, numbers: range, max_time_s: float, started_s: float) -> None:
        super().__init__(numbers, max_time_s, started_s)
        self.ended: list[_Exchange] = []

    def share(self, now_s: float) -> float:
        return self.done(len(self.ended), now_s)

    def glance(self, share: float, now_s: float) -> Glance:
        good = [each.record(self.started_s) for each in self.ended if each.fault is None]
        return Glance(share, tuple(good), now_s - self.started_s)

    def records(self) -> tuple[RequestRecord, ...]:
        return in_order(each.record(self.started_s) for each in self.ended)


class _Run:
    """One level. What is to happen at a time of its own (a request that is due) stands in `_events`."""

    def __init__(self, server: VirtualServer, target: Target, level: LoadLevel) -> None:
        self._server, self._target, self._level = server, target, level
        self._prompts = prompts(level)
        self._flying: dict[Any, _Exchange] = {}
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._serial = count()
        self._queue: list[tuple[int, float, _Phase]] = []  # of an open loop: due, and no room
        self._phase = self._warmup = _Phase(range(level.warmup_requests), math.inf, server.now_s)
        self._heard_s = server.now_s
        self._free_s = server.now_s  # when the client has sent what it was to send

    def measure(
        self,
        healthy: Callable[[], bool],
        timeout_s: float,
        stall_s: float,
        seen: Callable[[Glance], None] | None,
    ) -> LoadResult:
        """Drives the load until it is served, `healthy` says no, it stalls, or `timeout_s` are over."""
        deadline_s = self._server.now_s + timeout_s
        self._begin()
        aborted = False
        glances = iter(GLANCES if seen is not None else ())
        glance_at = next(glances, math.inf)
        while not aborted and self._goes_on(deadline_s, stall_s):
            now_s, phase = self._server.now_s, self._phase
            if seen is not None and phase is not self._warmup and phase.share(now_s) >= glance_at:
                seen(phase.glance(glance_at, now_s))
                glance_at = next(glances, math.inf)
                aborted = not healthy()
        stalled = bool(self._flying) and not aborted and self._server.now_s < deadline_s
        return self._result(deadline_s, aborted=aborted, stalled=stalled)

    def _result(self, deadline_s: float, *, aborted: bool, stalled: bool) -> LoadResult:
        over_s, phase, warmup = min(self._server.now_s, deadline_s), self._phase, self._warmup
        for request, exchange in self._flying.items():
            self._server.abort(request)
            exchange.fault = RequestError.CONNECTION if aborted else RequestError.TIMEOUT
            exchange.phase.ended.append(exchange)
        for number, due_s, waited in self._queue:
            waited.ended.append(_Exchange(waited, number, 0, due_s, due_s, fault=RequestError.TIMEOUT))
        late = [each for each in warmup.ended if each.stamps and each.stamps[-1] > phase.started_s]
        warm = [each.record(phase.started_s) for each in late]
        return LoadResult(
            records=phase.records(),
            window_s=phase.window_s(over_s),
            aborted=aborted,
            stalled=stalled,
            held=phase.held,
            warmup=() if phase is warmup else tuple(warm),
            gaps_s=array("f", _gaps(phase.ended)),
        )

    def _begin(self) -> None:
        level = self._level
        if level.request_rate is None:
            for _ in range(min(level.concurrency, level.warmup_requests + level.max_requests)):
                self._turn(self._server.now_s)
            return
        offsets, origin_s = arrivals(level), self._server.now_s
        self._arrive(0, origin_s, offsets, origin_s + next(offsets))

    def _goes_on(self, deadline_s: float, stall_s: float) -> bool:
        """Lets the server go on to what clients read next, or are due to do; False at the end or a limit."""
        if not self._flying and not self._events:
            return False
        server = self._server
        limit_s = min(deadline_s, self._heard_s + stall_s) if self._flying else deadline_s
        until_s = min(self._events[0][0] if self._events else math.inf, limit_s)
        heard = server.advance(until_s)
        if heard is None:
            server.now_s = max(server.now_s, until_s)
        now_s = server.now_s
        if now_s >= limit_s:
            return False
        while self._events and self._events[0][0] <= now_s:
            at_s, _, event = heapq.heappop(self._events)
            event(at_s)
        for request in heard or ():
            self._read(request, now_s)
        return True

    def _read(self, request: Any, now_s: float) -> None:
        """Something came back for `request`: tokens, an end, or both."""
        exchange = self._flying[request]
        self._heard_s = now_s
        if request.finish_reason == "abort":
            exchange.status = exchange.status or _HTTP_FAILED
            exchange.fault = RequestError.MALFORMED if exchange.stamps else RequestError.HTTP
        else:
            exchange.status = _HTTP_OK
            exchange.stamps.append(now_s)
            if request.finish_reason is None:
                return
            short = request.generated < exchange.asked_tokens and request.finish_reason != "stop"
            exchange.fault = RequestError.TRUNCATED if short else None
        del self._flying[request]
        self._ended(exchange, now_s)

    def _ended(self, exchange: _Exchange, now_s: float) -> None:
        exchange.phase.ended.append(exchange)
        if self._level.request_rate is not None:
            if self._queue:
                number, due_s, phase = self._queue.pop(0)
                self._send(number, now_s, due_s, phase)
        elif exchange.fault is not None:
            self._at(now_s + BACK_OFF_S, self._send_next)
        else:
            self._turn(now_s)

    def _turn(self, now_s: float) -> None:
        """A stream is free at `now_s`: its next request, after those of streams that were free before."""
        self._free_s = max(self._free_s, now_s) + TURN_S
        self._at(self._free_s, self._send_next)

    def _send_next(self, at_s: float) -> None:
        """A stream of a closed loop is free: its next request, if there is another."""
        number = None
        if self._phase is self._warmup and (number := self._warmup.next_number(at_s)) is None:
            self._measure_from(at_s)
        if number is None and (number := self._phase.next_number(at_s)) is None:
            return
        self._send(number, at_s, None, self._phase)

    def _arrive(self, number: int, origin_s: float, offsets: Iterator[float], due_s: float) -> None:
        """Plans the request of an open loop that is due at `due_s`; it plans the one after it."""

        def arrive(at_s: float) -> None:
            level = self._level
            if number == level.warmup_requests:
                self._measure_from(at_s)
            phase = self._phase
            if number == level.warmup_requests + level.max_requests or at_s >= phase.stop_s:
                phase.idle_s = at_s
                return
            if len(self._flying) >= level.concurrency:
                phase.held += 1
                self._queue.append((number, at_s, phase))
            else:
                self._send(number, at_s, at_s, phase)
            self._arrive(number + 1, origin_s, offsets, origin_s + next(offsets))

        self._at(due_s, arrive)

    def _measure_from(self, started_s: float) -> None:
        level = self._level
        numbers = range(level.warmup_requests, level.warmup_requests + level.max_requests)
        self._phase = _Phase(numbers, level.max_time_s, started_s)

    def _send(self, number: int, at_s: float, due_s: float | None, phase: _Phase) -> None:
        body, tokens = completion_call(self._target, self._prompts[number])
        exchange = _Exchange(phase, number, tokens, at_s, due_s)
        taken = self._server.submit(body, at_s)
        if isinstance(taken, int):
            exchange.status, exchange.fault = taken, RequestError.HTTP
            self._at(at_s, lambda now_s: self._ended(exchange, now_s))
            return
        if not self._flying:
            self._heard_s = max(self._heard_s, at_s)
        exchange.request = taken
        self._flying[taken] = exchange

    def _at(self, when_s: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._serial), event))


def _gaps(exchanges: Sequence[_Exchange]) -> Iterator[float]:
    """Seconds between successive reads of every request that succeeded."""
    for each in exchanges:
        if each.fault is None:
            yield from map(sub, each.stamps[1:], each.stamps)
