"""HTTP/1.1 with keep-alive on asyncio's transports: bytes in, (method, path, body) out, bytes back.

Knows nothing of what is served. Requests that arrive while one is answered wait for their turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

Serve = Callable[["Connection", str, str, bytes], None]


class Connection(asyncio.Protocol):
    """One client. `serve` is called for each request and answers with `write`, at last with `done`."""

    def __init__(self, serve: Serve) -> None:
        self.on_lost: Callable[[], None] | None = None  # set while a request is answered
        self._serve = serve
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url = b""
        self._body: list[bytes] = []
        self._queue: deque[tuple[str, str, bytes, bool]] = deque()
        self._busy = False
        self._keep_alive = True

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def done(self) -> None:
        """The answer is complete."""
        self._busy = False
        self.on_lost = None
        if not self._keep_alive and self._transport is not None:
            self._transport.close()
        elif self._queue:
            self._next()

    def _next(self) -> None:
        method, path, body, self._keep_alive = self._queue.popleft()
        self._busy = True
        self._serve(self, method, path, body)

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self._close()
        except httptools.HttpParserError:
            self.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._queue.clear()
        if self.on_lost is not None:
            self.on_lost()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # httptools calls these

    def on_message_begin(self) -> None:
        self._url, self._body = b"", []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode("ascii")
        path = self._url.split(b"?", 1)[0].decode("latin-1")
        self._queue.append((method, path, b"".join(self._body), self._parser.should_keep_alive()))
        if not self._busy:
            self._next()
