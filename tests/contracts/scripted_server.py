"""An OpenAI-compatible server on loopback that answers as a test tells it to, byte by byte."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


@dataclass
class Call:
    """One request as the server received it, and the way to answer it. Its `headers` have lower case."""

    number: int
    path: str
    body: dict[str, Any]
    raw: bytes
    writer: asyncio.StreamWriter
    on_connection: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    async def send(self, *parts: bytes, pause_s: float = 0.0) -> None:
        """Writes each part by itself."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(pause_s)

    def close(self) -> None:
        """Ends the connection in an orderly way (FIN)."""
        self.writer.close()

    def reset(self) -> None:
        """Breaks the connection (RST)."""
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Call], Awaitable[None]]


@dataclass
class ScriptedServer:
    """Answers every request by `script`; `with ScriptedServer(script) as server: server.url`."""

    script: Script
    calls: list[Call] = field(default_factory=list)
    connections: int = 0
    in_flight: int = 0
    most_in_flight: int = 0

    def __enter__(self) -> ScriptedServer:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.die()

    def die(self) -> None:
        """Breaks every connection and listens no more, as a killed process would."""

        async def stop() -> None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(stop(), self._loop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        served = 0
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                raw = await reader.readexactly(int(length or 0))
                path, headers = head.split()[1].decode(), _headers(head)
                call = Call(len(self.calls), path, json.loads(raw or "{}"), raw, writer, served, headers)
                served += 1
                self.calls.append(call)
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    await self.script(call)
                finally:
                    self.in_flight -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            with suppress(ConnectionError):
                writer.close()


def _headers(head: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:] if line)
    return {name.lower(): value.strip() for name, _, value in lines}


def chunk(data: bytes) -> bytes:
    """`data` as one HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(payload: object) -> bytes:
    """One SSE event; a string is sent as it is, anything else as JSON."""
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return f"data: {text}\n\n".encode()


def token_events(
    tokens: int,
    *,
    prompt_tokens: int = 7,
    per_event: int = 1,
    finish_reason: str = "length",
    usage: bool = True,
) -> list[bytes]:
    """The events of a completion of `tokens` tokens, `[DONE]` among them."""
    events = []
    for start in range(0, tokens, per_event):
        last = start + per_event >= tokens
        text = " word" * min(per_event, tokens - start)
        choice = {"index": 0, "text": text, "finish_reason": finish_reason if last else None}
        events.append(event({"choices": [choice]}))
    if usage:
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
        events.append(event({"choices": [], "usage": counts}))
    return [*events, event("[DONE]")]


def streaming(*, pause_s: float = 0.0, per_event: int = 1, **options: Any) -> Script:
    """The well-behaved engine: streams as many tokens as were asked for, an event to a chunk."""

    async def script(call: Call) -> None:
        events = token_events(call.body["max_tokens"], per_event=per_event, **options)
        await call.send(HEAD)
        await call.send(*(chunk(e) for e in events), pause_s=pause_s)
        await call.send(END)

    return script


def status(code: int, body: bytes = b'{"error": {"message": "no"}}') -> Script:
    """Answers every request with a status and a body of known length."""

    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 %d Oops\r\nContent-Length: %d\r\n\r\n%b" % (code, len(body), body))

    return script


async def hanging(call: Call) -> None:
    """Takes the request and never answers."""
    await asyncio.sleep(3600)


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
