"""A completions server that keeps a known schedule, in a process of its own: the ruler for load generators.

It answers each request with its first token `FIRST_S` after arrival and one more every `EACH_S`, `TOKENS`
in all. Each token is aimed at an absolute deadline, so that lateness does not add up, and the server gives
an account of how late it was.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter
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
_USAGE = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": TOKENS, "total_tokens": INPUT_TOKENS + TOKENS}
_LAST = _completion("length") + _completion(choices=[], usage=_USAGE) + _chunk("[DONE]") + b"0\r\n\r\n"


@dataclass(frozen=True)
class Account:
    """What the server saw of a run: `perf_counter` times (one clock for all processes), lateness in s."""

    first_arrival_s: float
    last_token_s: float
    lateness_mean_s: float
    lateness_p99_s: float
    tokens: int


class _Schedule(asyncio.Protocol):
    """One connection."""

    arrivals: ClassVar[list[float]] = []
    lateness: ClassVar[list[float]] = []
    last_token_s: ClassVar[float] = 0.0

    def __init__(self) -> None:
        self._received = b""
        self._sent = 0
        self._arrived_s = 0.0
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
        self._transport.write(_HEAD)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        due_s = self._arrived_s + FIRST_S + self._sent * EACH_S
        self._timer = self._loop.call_later(max(due_s - perf_counter(), 0.0), self._send, due_s)

    def _send(self, due_s: float) -> None:
        self._sent += 1
        self._transport.write(_TOKEN if self._sent < TOKENS else _LAST)
        _Schedule.last_token_s = perf_counter()
        self.lateness.append(_Schedule.last_token_s - due_s)
        if self._sent < TOKENS:
            self._wait()

    @classmethod
    def account(cls) -> Account:
        """The account of everything since the last one."""
        late = cls.lateness or [0.0]
        account = Account(
            first_arrival_s=min(cls.arrivals, default=0.0),
            last_token_s=cls.last_token_s,
            lateness_mean_s=float(np.mean(late)),
            lateness_p99_s=float(np.percentile(late, 99)),
            tokens=len(cls.lateness),
        )
        cls.arrivals.clear()
        cls.lateness.clear()
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
