"""What stands before every request: who may ask, from where, and what a browser may do with the answer.

An ASGI layer around the application, so that no route can be forgotten: all paths ask for the token but
those of the pages themselves, which hold nothing of any study.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tuner.serve.tokens import matches

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC = frozenset({"/", "/docs", "/openapi.json"})
PUBLIC_FOLDER = "/static/"
_LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


class Guard:
    """Lets a request to `app` pass where it may.

    `token_digest` is of the token that is asked for; without one, only who reaches this server by a name of
    loopback may ask, or any web page could through a name of its own that leads here. A browser's request
    that another site's page makes is always refused.
    """

    def __init__(self, app: App, token_digest: str | None, max_bytes: int) -> None:
        self._app = app
        self._digest = token_digest
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # there are no web sockets here
        headers = {name.lower(): value for name, value in scope["headers"]}
        if refused := self._refusal(scope, headers):
            await _refuse(send, *refused)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                added = [
                    (name.encode(), value.encode())
                    for name, value in _HEADERS.items()
                    if name.encode() not in there
                ]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, with_headers)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """(status, reason) where the request may not pass."""
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin.partition("://")[2] != host:
            return 403, "a page of another origin asks"
        if self._digest is None and _name_of(host) not in _LOOPBACK:
            return 403, "without a token only loopback is served; ask at 127.0.0.1 or localhost"
        if not _is_public(scope) and not self._has_token(headers):
            return 401, "the token is missing or wrong: send the header `Authorization: Bearer TOKEN`"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_bytes:
            return 413, f"the body is too long: more than {self._max_bytes:,} bytes"
        return None

    def _has_token(self, headers: dict[bytes, bytes]) -> bool:
        if self._digest is None:
            return True
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        return scheme.lower() == "bearer" and matches(token.strip(), self._digest)


def _is_public(scope: Scope) -> bool:
    path = str(scope["path"]).removeprefix(str(scope.get("root_path", "")))
    return path in PUBLIC or path.startswith(PUBLIC_FOLDER)


def _name_of(host: str) -> str:
    """A Host header without its port."""
    name, _, port = host.rpartition(":")
    return name if port.isdigit() else host


async def _refuse(send: Send, status: int, reason: str) -> None:
    content = json.dumps({"error": reason, "problems": []}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **_HEADERS}
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="inference-autotuner"'
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
