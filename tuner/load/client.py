"""The native load generator: closed or open loops of streamed completions. Knows nothing of engines or SLOs.

Everything that can be done before the measured window (prompts, request bytes, connections) or after it
(reading the answers) is done there; within it, a read costs a stamp and the HTTP framing. The garbage
collector rests meanwhile. docs/load.md states the rules and the accuracy measured.
"""

from __future__ import annotations

import asyncio
import gc
import math
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter, thread_time

from tuner.failures import Cause, Failure, Stage, TrialFailed
from tuner.load.base import GLANCES, Glance, LoadResult, Target, completion_call
from tuner.load.http import Address, Connection, Exchange, open_connection
from tuner.load.phase import Phase, quiet_s
from tuner.metrics import Distribution, RequestError
from tuner.prompts import prompts
from tuner.workload import LoadLevel, arrivals

PREPARED_BYTES = 64 * 2**20  # of requests made before the window; those beyond are made when they are sent
PREPARED_REQUESTS = 10_000  # for the same reason: making one takes some 20 µs
BODY_BYTES = 2**20  # that an answer may be long, and
BODY_BYTES_PER_TOKEN = 4096  # more for each token; with 20 logprobs one takes 2 KB
CONNECT_AT_ONCE = 32  # below the 128 that a listening socket keeps waiting by default
BACK_OFF_S = 0.075  # after a request that failed, so that a server which refuses is not flooded
HEALTH_POLL_S = 0.25
TIMER_S = 0.001  # what a timer of the event loop is exact to
LAG_TICK_S = 0.02
OTHER_FILES = 64  # that are open beside the connections


class NativeClient:
    """Load by one asyncio loop over keep-alive connections; the accurate one, and the default."""

    name = "native"

    def require(self) -> None:
        """It takes nothing more."""

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
        """Puts `level` on `target`; see `LoadGenerator.run`. ValueError for a base URL that is none.

        To be called from any thread that runs no event loop of its own.
        """
        deadline_s = perf_counter() + timeout_s
        _allow_files(level)
        requests = Requests(target, level)
        with asyncio.Runner(loop_factory=_new_loop) as runner, _no_garbage_collection():
            run = _Run(requests, level)
            return runner.run(run.measure(healthy, deadline_s, stall_s, seen))


class Requests:
    """The bytes of every request of a level, the first `PREPARED_REQUESTS` made beforehand."""

    def __init__(self, target: Target, level: LoadLevel) -> None:
        self.address = Address.of(target.base_url)
        self._target = target
        self._prompts = prompts(level)
        self._prepared: list[tuple[bytes, int]] = []
        size = 0
        while len(self._prepared) < min(len(self._prompts), PREPARED_REQUESTS) and size < PREPARED_BYTES:
            self._prepared.append(self._make(len(self._prepared)))
            size += len(self._prepared[-1][0])

    def __getitem__(self, number: int) -> tuple[bytes, int]:
        """The bytes to send as request `number`, and how many tokens it asks for."""
        return self._prepared[number] if number < len(self._prepared) else self._make(number)

    def _make(self, number: int) -> tuple[bytes, int]:
        body, tokens = completion_call(self._target, self._prompts[number])
        return self.address.post("/v1/completions", body, self._target.api_key), tokens


class _Run:
    """One run: a warm-up and a measured phase over the same connections."""

    def __init__(self, requests: Requests, level: LoadLevel) -> None:
        self._requests = requests
        self._level = level
        self._spare: list[Connection] = []
        self._opened: set[Connection] = set()
        self._phase = self._warmup = Phase(range(0), 0.0)
        self._lags_s = array("d")
        self._began_s, self._cpu_s = perf_counter(), thread_time()

    async def measure(
        self,
        healthy: Callable[[], bool],
        deadline_s: float,
        stall_s: float,
        seen: Callable[[Glance], None] | None,
    ) -> LoadResult:
        """Drives the load until it is served, `healthy` says no, it stalls, or the deadline is there."""
        driving = asyncio.create_task(self._drive())
        lag = asyncio.create_task(self._watch_lag())
        aborted = stalled = False
        glances = iter(GLANCES if seen is not None else ())
        glance_at = next(glances, math.inf)
        try:
            while not (aborted or stalled or driving.done()) and (left_s := deadline_s - perf_counter()) > 0:
                await asyncio.wait((driving,), timeout=min(left_s, HEALTH_POLL_S))
                aborted = not driving.done() and not healthy()
                stalled = not driving.done() and quiet_s(self._warmup, self._phase) > stall_s
                if seen is not None and self._phase is not self._warmup and self._phase.share() >= glance_at:
                    seen(self._phase.glance(glance_at))
                    glance_at = next(glances, math.inf)
            over_s = perf_counter()
            cpu = (thread_time() - self._cpu_s) / max(over_s - self._began_s, LAG_TICK_S)
            if driving.done():
                driving.result()  # raises what went wrong in this program, if anything did
        finally:
            driving.cancel()
            lag.cancel()
            await asyncio.gather(driving, lag, return_exceptions=True)
            for connection in self._opened:
                connection.close()
        unfinished = RequestError.CONNECTION if aborted else RequestError.TIMEOUT
        phase = self._phase
        return LoadResult(
            records=phase.records(unfinished),
            window_s=phase.window_s(over_s),
            client_lag_s=max(self._lags_s, default=0.0),
            aborted=aborted,
            stalled=stalled,
            held=phase.held,
            warmup=() if phase is self._warmup else self._warmup.records(unfinished),
            gaps_s=phase.gaps_s,
            client_lag=Distribution.of(self._lags_s),
            client_cpu=cpu,
            started_s=phase.started_s,
            said=phase.said or self._warmup.said,
        )

    async def _drive(self) -> None:
        """Connects, warms up and measures, without a pause between the two."""
        level, total = self._level, self._level.warmup_requests + self._level.max_requests
        rate = level.request_rate
        await self._connect(min(level.concurrency, total, total if rate is None else math.ceil(rate)))
        self._phase = self._warmup = Phase(range(level.warmup_requests), math.inf)
        if rate is not None:
            await self._keep_rate()
            return
        async with asyncio.TaskGroup() as group:
            for _ in range(min(level.concurrency, total)):
                group.create_task(self._keep_busy())

    def _measure_from(self, started_s: float) -> Phase:
        """The measured phase; requests of the warm-up may still be in flight."""
        level = self._level
        numbers = range(level.warmup_requests, level.warmup_requests + level.max_requests)
        self._phase = Phase(numbers, level.max_time_s, started_s)
        self._lags_s, self._began_s, self._cpu_s = array("d"), perf_counter(), thread_time()
        self._warmup.goes_on(started_s)
        return self._phase

    async def _connect(self, count: int) -> None:
        """Opens connections, a few at a time so that no server's backlog overflows; failures show later."""
        room = asyncio.Semaphore(CONNECT_AT_ONCE)

        async def connect() -> None:
            async with room:
                with suppress(OSError):
                    self._spare.append(await self._open())

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(connect())

    def _next(self) -> tuple[int, Phase] | None:
        """The next request of a closed loop, by number, and its phase; None when there is no other."""
        if self._phase is self._warmup:
            if (number := self._warmup.next_number(perf_counter())) is not None:
                return number, self._warmup
            self._measure_from(perf_counter())
        number = self._phase.next_number(perf_counter())
        return None if number is None else (number, self._phase)

    async def _keep_busy(self) -> None:
        """One stream of a closed loop: it sends its next request when the last one has ended."""
        connection = self._spare.pop() if self._spare else None
        while (following := self._next()) is not None:
            number, phase = following
            request, exchange = self._new(number, phase)
            phase.began(exchange)
            connection = await self._exchange(connection, request, exchange)
            phase.ended(exchange)
            if exchange.unserved:
                await asyncio.sleep(BACK_OFF_S)
        if connection is not None:
            self._spare.append(connection)

    async def _keep_rate(self) -> None:
        """An open loop: each request is sent when it is due, whatever became of those before it."""
        level, phase, origin_s = self._level, self._phase, perf_counter()
        room = asyncio.Semaphore(level.concurrency)
        async with asyncio.TaskGroup() as group:
            for number, offset_s in enumerate(arrivals(level)):
                due_s = origin_s + offset_s
                if number == level.warmup_requests:
                    phase = self._measure_from(due_s)
                if number == level.warmup_requests + level.max_requests or due_s >= phase.stop_s:
                    phase.idle_s = due_s
                    break
                await _until(due_s)
                group.create_task(self._send(number, due_s, phase, room))
            await _until(min(phase.idle_s, phase.stop_s))

    async def _send(self, number: int, due_s: float, phase: Phase, room: asyncio.Semaphore) -> None:
        """One request of an open loop, as soon as there is room for it."""
        request, exchange = self._new(number, phase, due_s)
        phase.began(exchange)
        phase.held += room.locked()
        async with room:
            connection = self._spare.pop() if self._spare else None
            connection = await self._exchange(connection, request, exchange)
        phase.ended(exchange)
        if connection is not None:
            self._spare.append(connection)

    def _new(self, number: int, phase: Phase, due_s: float | None = None) -> tuple[bytes, Exchange]:
        request, tokens = self._requests[number]
        most_bytes, place = BODY_BYTES + BODY_BYTES_PER_TOKEN * tokens, number - phase.numbers.start
        return request, Exchange(tokens, most_bytes, perf_counter(), due_s, place)

    async def _exchange(
        self, connection: Connection | None, request: bytes, exchange: Exchange
    ) -> Connection | None:
        """Sends `request` and awaits its end; returns the connection for the next one.

        A kept connection that the server drops before any byte of the response proves nothing but that
        it was kept too long (RFC 9112, section 9.3.1): the request is sent once more, on a fresh one.
        """
        if connection is not None and connection.usable:
            await connection.ask(request, exchange)
            if not exchange.dropped:
                return connection
            exchange.fault = exchange.finished_s = None
        if connection is not None:
            self._opened.discard(connection)
        try:
            connection = await self._open()
        except OSError:
            exchange.fault = RequestError.CONNECTION
            return None
        await connection.ask(request, exchange)
        return connection

    async def _open(self) -> Connection:
        """A fresh connection, closed when the run ends."""
        connection = await open_connection(self._requests.address)
        self._opened.add(connection)
        return connection

    async def _watch_lag(self) -> None:
        """Keeps by how much the loop was late for each tick, those included that one long delay swallowed.

        (As HdrHistogram corrects for what coordinated omission leaves out: else a second in which nothing
        was answered would count for one tick of fifty.)
        """
        while True:
            due_s = perf_counter() + LAG_TICK_S
            await asyncio.sleep(LAG_TICK_S)
            late_s = max(perf_counter() - due_s, 0.0)
            self._lags_s.append(late_s)
            while (late_s := late_s - LAG_TICK_S) > 0:
                self._lags_s.append(late_s)


async def _until(due_s: float) -> None:
    """Returns at `due_s` (`perf_counter`), not before: timers are of whole milliseconds, the rest is spun."""
    while (left_s := due_s - perf_counter()) > 0:
        await asyncio.sleep(left_s if left_s > TIMER_S else 0)


def _new_loop() -> asyncio.AbstractEventLoop:
    """A uvloop where there is one (not on Windows): a quarter of the lag of asyncio's own at 64 streams."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _allow_files(level: LoadLevel) -> None:
    """Lets this process open a file for each stream; TrialFailed where it never may.

    Usually it may open 1024: with as many streams, failures of its own would look like the engine's. At a
    rate there are seldom as many as there may be.
    """
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return
    wanted, (soft, hard) = level.concurrency + OTHER_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted and level.request_rate is None:
        detail = f"{level.concurrency} streams are more than this process may open files: {hard} (ulimit -Hn)"
        raise TrialFailed(Failure(Stage.LOAD, Cause.INTERNAL, detail))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keeps the collector from stopping the loop: 15 to 45 ms with Ray and pandas in the process."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
