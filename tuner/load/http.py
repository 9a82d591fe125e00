"""One keep-alive HTTP/1.1 connection that stamps every read. Knows nothing of SSE, tokens or load levels.

A read is stamped with `time.perf_counter` before anything else is done with it. llhttp (through httptools)
then takes the framing off at C speed, whatever it is (chunked, Content-Length, until close) and however
the bytes are cut up; the body is only collected. What the body means is read after the measurement.
"""

from __future__ import annotations

import asyncio
import ssl
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from http import HTTPStatus
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import httptools

from tuner.metrics import RequestError

CONNECT_TIMEOUT_S = 10.0


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and what came back for it.

    `asked_tokens` is how many were asked for, `number` its record's. `sent_s` and `stamps` are `perf_counter`
    times, and so is `due_s`, when it was to be sent in an open loop; `ends[i]` is the length of `body` after
    the read stamped `stamps[i]`. `finished_s` is when the response ended as its framing promised, or else
    when the `fault` was met.
    """

    asked_tokens: int
    body_limit_bytes: int
    sent_s: float
    due_s: float | None = None
    number: int = 0
    finished_s: float | None = None
    status: int | None = None
    fault: RequestError | None = None
    body: bytearray = field(default_factory=bytearray)
    stamps: array[float] = field(default_factory=lambda: array("d"))
    ends: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def counts_from_s(self) -> float:
        """When its latencies begin."""
        return self.sent_s if self.due_s is None else self.due_s

    @property
    def first_body_s(self) -> float | None:
        """When the first of the body came: servers send the head before there is a token."""
        place = bisect_right(self.ends, 0)
        return self.stamps[place] if place < len(self.ends) else None

    @property
    def last_body_s(self) -> float | None:
        """When the last of the body came so far."""
        return self.stamps[bisect_left(self.ends, len(self.body))] if self.body else None

    @property
    def unserved(self) -> bool:
        """Whether it plainly failed: a fault, a status other than 200, or an end without `[DONE]`."""
        return self.fault is not None or self.status != HTTPStatus.OK or b"[DONE]" not in self.body[-32:]

    @property
    def dropped(self) -> bool:
        """Whether the connection went away before any byte of the response."""
        return self.fault is RequestError.CONNECTION and not self.stamps


@dataclass(frozen=True)
class Address:
    """Where requests go: the parts of a base URL that a connection needs."""

    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, base_url: str) -> Address:
        """The address of `http://host[:port][/path]` or https; ValueError for anything else."""
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"base URL must be http://host:port or https://host:port, got {base_url!r}")
        tls = ssl.create_default_context() if url.scheme == "https" else None
        return cls(url.hostname, url.port or (443 if tls else 80), url.path.rstrip("/"), tls)

    def post(self, path: str, body: bytes, api_key: str = "") -> bytes:
        """The bytes of a POST of JSON to `path`, with the key where there is one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        bearer = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        head = (
            f"POST {self.path}{path} HTTP/1.1\r\nHost: {host}:{self.port}\r\nAccept: text/event-stream\r\n"
            f"{bearer}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Connection(asyncio.Protocol):
    """A connection that carries one exchange at a time; made by `open_connection`."""

    def __init__(self) -> None:
        self.usable = False
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._until_close = True

    async def ask(self, request: bytes, exchange: Exchange) -> None:
        """Sends `request` and returns when `exchange` has its whole response or a fault."""
        assert self._transport is not None and self._exchange is None
        self._parser = httptools.HttpResponseParser(self)
        self._until_close = True
        self._exchange = exchange
        self._done = asyncio.get_running_loop().create_future()
        exchange.sent_s = perf_counter()
        self._transport.write(request)
        try:
            await self._done
        finally:
            self._exchange = None

    def close(self) -> None:
        """Drops the connection at once."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its base class
        self.usable = True

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        exchange = self._exchange
        if exchange is None or exchange.finished_s is not None:  # bytes that nobody asked for
            self.close()
            return
        exchange.stamps.append(now)
        try:
            assert self._parser is not None
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):  # a 101 that nobody asked for
            self._finish(RequestError.MALFORMED)
        exchange.ends.append(len(exchange.body))
        if len(exchange.body) > exchange.body_limit_bytes:
            self._finish(RequestError.MALFORMED)

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._exchange is not None:
            ended = exc is None and self._exchange.status is not None and self._until_close
            self._finish(None if ended else RequestError.CONNECTION)

    # What the HTTP parser calls.

    def on_header(self, name: bytes, _value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._until_close = False

    def on_headers_complete(self) -> None:
        assert self._exchange is not None and self._parser is not None
        if self._exchange.finished_s is None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, part: bytes) -> None:
        assert self._exchange is not None
        if self._exchange.finished_s is None:  # what follows a whole response is none of it
            self._exchange.body += part

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._parser.get_status_code() < HTTPStatus.OK:  # 1xx: the answer proper comes after it
            return
        self.usable = self._parser.should_keep_alive()
        self._finish(None)

    def _finish(self, fault: RequestError | None) -> None:
        """Ends the exchange, once."""
        exchange = self._exchange
        if exchange is None or exchange.finished_s is not None:
            return
        exchange.finished_s = perf_counter()
        exchange.fault = fault
        if fault is not None or not self.usable:
            self.close()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


async def open_connection(address: Address) -> Connection:
    """A connection to `address`; OSError (TimeoutError among them) where there is none to be had."""
    opening = asyncio.get_running_loop().create_connection(
        Connection, address.host, address.port, ssl=address.tls
    )
    _, connection = await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
    return connection
