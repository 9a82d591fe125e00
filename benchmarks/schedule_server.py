"""A completions server that keeps a known schedule, in a process of its own: the ruler for load generators.

It answers each request with its first token `FIRST_S` after arrival and one more every `EACH_S`, `TOKENS`
in all. Each token is aimed at an absolute deadline, so that lateness does not add up, and the server gives
an account of what it really did, by which a client's figures are judged. A request costs it little: the
body is not read, and the head of the answer goes with the first token.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter, process_time
from typing import ClassVar, cast

import numpy as np
import uvloop

FIRST_S, EACH_S, TOKENS = 0.050, 0.010, 100
E2E_S = FIRST_S + (TOKENS - 1) * EACH_S
INPUT_TOKENS = 100
MODEL = "schedule"


def _chunk(payload: str) -> bytes:
    """One SSE event in one HTTP chunk."""
    event = f"data: {payload}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def _completion(finish_reason: str | None = None, **more: object) -> bytes:
    """A chunk of one token, about as long as SGLang's, that reads as a completion and as a chat."""
    choice = {"index": 0, "text": " word", "delta": {"content": " word"}, "finish_reason": finish_reason}
    chunk = {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": MODEL, "choices": [choice]}
    return _chunk(json.dumps(chunk | more))


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_TOKEN = _completion()
_FIRST = _HEAD + _TOKEN
_USAGE = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": TOKENS, "total_tokens": INPUT_TOKENS + TOKENS}
_LAST = _completion("length") + _completion(choices=[], usage=_USAGE) + _chunk("[DONE]") + b"0\r\n\r\n"


Pair = tuple[float, float]  # of (mean, 99th percentile)


@dataclass(frozen=True)
class Account:
    """What the server did in a run: times by `perf_counter` (one clock for all processes), all in s.

    `requests` has the arrival, the first token's and the last token's time of each that was served, in the
    order of arrival.
    """

    first_arrival_s: float
    last_token_s: float
    lateness_mean_s: float
    tokens: int
    cpu_s: float
    requests: Sequence[tuple[float, float, float]]

    def latencies_s(self, last: int) -> tuple[Pair, Pair, Pair]:
        """TTFT, TPOT and e2e of the requests that arrived last: a client's warm-up goes before them."""
        arrival, first, end = np.array(self.requests[-last:]).T
        pairs = (first - arrival, (end - first) / (TOKENS - 1), end - arrival)
        ttft, tpot, e2e = ((float(np.mean(all_s)), float(np.percentile(all_s, 99))) for all_s in pairs)
        return ttft, tpot, e2e


class _Schedule(asyncio.Protocol):
    """One connection."""

    arrivals: ClassVar[list[float]] = []
    lateness: ClassVar[list[float]] = []
    served: ClassVar[list[tuple[float, float, float]]] = []
    cpu_s: ClassVar[float] = 0.0  # at the last account

    def __init__(self) -> None:
        self._received = b""
        self._sent = 0
        self._arrived_s = self._first_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if not found or len(body) < int(length or 0):
            return
        self._received = b""
        if not head.startswith(b"POST"):  # /health, /v1/models: whatever a client asks before it starts
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            return
        self._arrived_s, self._sent = now, 0
        self.arrivals.append(now)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        due_s = self._arrived_s + FIRST_S + self._sent * EACH_S
        self._timer = self._loop.call_later(max(due_s - perf_counter(), 0.0), self._send, due_s)

    def _send(self, due_s: float) -> None:
        self._sent += 1
        self._transport.write(_LAST if self._sent == TOKENS else _FIRST if self._sent == 1 else _TOKEN)
        now = perf_counter()
        self.lateness.append(now - due_s)
        if self._sent == 1:
            self._first_s = now
        if self._sent < TOKENS:
            self._wait()
        else:
            self.served.append((self._arrived_s, self._first_s, now))

    @classmethod
    def account(cls) -> Account:
        """The account of everything since the last one."""
        before_s, cls.cpu_s = cls.cpu_s, process_time()
        account = Account(
            first_arrival_s=min(cls.arrivals, default=0.0),
            last_token_s=max((last_s for *_, last_s in cls.served), default=0.0),
            lateness_mean_s=float(np.mean(cls.lateness or [0.0])),
            tokens=len(cls.lateness),
            cpu_s=cls.cpu_s - before_s,
            requests=sorted(cls.served),
        )
        for kept in (cls.arrivals, cls.lateness, cls.served):
            kept.clear()
        return account


async def _serve(pipe: Connection) -> None:
    """Sends the port, then an account for every message received, until the pipe is closed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Schedule, "127.0.0.1", 0, backlog=1024)
    pipe.send(server.sockets[0].getsockname()[1])
    closed = asyncio.Event()

    def answer() -> None:
        try:
            pipe.recv()
            pipe.send(_Schedule.account())
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())
            closed.set()

    loop.add_reader(pipe.fileno(), answer)
    await closed.wait()


def _process(pipe: Connection) -> None:
    uvloop.run(_serve(pipe))


class ScheduleServer:
    """The running server, seen from outside."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.url = f"http://127.0.0.1:{pipe.recv()}"

    def account(self) -> Account:
        """What the server saw since the last account."""
        self._pipe.send(None)
        account: Account = self._pipe.recv()
        return account


@contextmanager
def running() -> Iterator[ScheduleServer]:
    """The server in a process of its own, gone afterwards."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_process, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ScheduleServer(ours)
    finally:
        ours.close()
        process.join(5)
        process.kill()
