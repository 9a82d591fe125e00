"""What is written to a client: JSON bodies, SSE events, errors, in the forms of OpenAI and of SGLang.

An answer belongs to one request. Its `advance` is called for every generated token in the loop that paces the
whole server, so an event's bytes are built beforehand and only the new words are put between them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Protocol
from uuid import uuid4

from tuner.engines.simulator.request import Request
from tuner.engines.simulator.text import output_word

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}
_REASONS |= {500: "Internal Server Error", 503: "Service Unavailable"}
_ERROR_TYPES = {400: "BadRequestError", 503: "ServiceUnavailableError"}


def response(status: int, body: bytes, content_type: str = "application/json") -> bytes:
    """A whole HTTP response."""
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}"
    )
    return b"%b\r\n\r\n%b" % (head.encode(), body)


def json_response(body: Any, status: int = 200) -> bytes:
    """A whole HTTP response of `body`."""
    return response(status, json.dumps(body).encode())


def error_body(status: int, message: str) -> dict[str, Any]:
    """SGLang's error object, a flat form of OpenAI's."""
    kind = _ERROR_TYPES.get(status, "InternalServerError")
    return {"object": "error", "message": message, "type": kind, "param": None, "code": status}


def _event(body: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(body).encode()


def _words(first: int, last: int) -> str:
    """Generated tokens `first` to `last`, the end left out, as text."""
    return "".join(f" {output_word(index)}" for index in range(first, last))


class Form(Protocol):
    """How an endpoint writes what was generated."""

    def start(self) -> bytes:
        """Events before the first token."""
        ...

    def tokens(self, first: int, request: Request) -> bytes:
        """The event for the tokens from `first` to the newest."""
        ...

    def end(self, request: Request) -> bytes:
        """Events after the last token, without [DONE]."""
        ...

    def whole(self, request: Request) -> Any:
        """The answer in one piece, not streamed."""
        ...


class _OpenAI:
    """What /v1/completions and /v1/chat/completions share.

    `with_usage` is the client's stream_options.include_usage, `report_cached` the server's
    --enable-cache-report.
    """

    kind: str
    chunk_kind: str
    prefix: str

    def __init__(self, model: str, *, with_usage: bool, report_cached: bool) -> None:
        self._with_usage = with_usage
        self._report_cached = report_cached
        self._common = {
            "id": f"{self.prefix}-{uuid4().hex}",
            "object": self.chunk_kind,
            "created": int(time.time()),
            "model": model,
        }

    def _chunk(self, content: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        return _event({**self._common, "choices": [choice]})

    def _usage_chunk(self, request: Request) -> bytes:
        if not self._with_usage:
            return b""
        return _event({**self._common, "choices": [], "usage": self._usage(request)})

    def _whole(self, content: dict[str, Any], request: Request) -> Any:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": request.finish_reason}
        return {**self._common, "object": self.kind, "choices": [choice], "usage": self._usage(request)}

    def _usage(self, request: Request) -> dict[str, Any]:
        prompt = len(request.prompt)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": request.generated,
            "total_tokens": prompt + request.generated,
            "prompt_tokens_details": {"cached_tokens": request.cached_tokens}
            if self._report_cached
            else None,
        }


class Completion(_OpenAI):
    """/v1/completions."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, *, with_usage: bool, report_cached: bool) -> None:
        super().__init__(model, with_usage=with_usage, report_cached=report_cached)
        self._before, self._after = self._chunk({"text": "\0"}).split(b"\\u0000")
        self._after_last = self._after.replace(b'"finish_reason": null', b'"finish_reason": "length"')

    def start(self) -> bytes:
        return b""

    def tokens(self, first: int, request: Request) -> bytes:
        after = self._after if request.finish_reason is None else self._after_last
        return b"%b%b%b" % (self._before, _words(first, request.generated).encode(), after)

    def end(self, request: Request) -> bytes:
        return self._usage_chunk(request)

    def whole(self, request: Request) -> Any:
        return self._whole({"text": _words(0, request.generated)}, request)


class Chat(_OpenAI):
    """/v1/chat/completions."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, model: str, *, with_usage: bool, report_cached: bool) -> None:
        super().__init__(model, with_usage=with_usage, report_cached=report_cached)
        self._before, self._after = self._chunk({"delta": {"content": "\0"}}).split(b"\\u0000")

    def start(self) -> bytes:
        return self._chunk({"delta": {"role": "assistant", "content": ""}})

    def tokens(self, first: int, request: Request) -> bytes:
        return b"%b%b%b" % (self._before, _words(first, request.generated).encode(), self._after)

    def end(self, request: Request) -> bytes:
        return self._chunk({"delta": {}}, "length") + self._usage_chunk(request)

    def whole(self, request: Request) -> Any:
        message = {"role": "assistant", "content": _words(0, request.generated)}
        return self._whole({"message": message}, request)


class Native:
    """SGLang's /generate: every event has the whole text so far."""

    def __init__(self, rid: str) -> None:
        self._rid = rid

    def start(self) -> bytes:
        return b""

    def tokens(self, first: int, request: Request) -> bytes:
        return _event(self.whole(request))

    def end(self, request: Request) -> bytes:
        return b""

    def whole(self, request: Request) -> Any:
        reason = None
        if request.finish_reason is not None:
            reason = {"type": request.finish_reason, "length": request.generated}
        return {
            "text": _words(0, request.generated),
            "meta_info": {
                "id": self._rid,
                "finish_reason": reason,
                "prompt_tokens": len(request.prompt),
                "completion_tokens": request.generated,
                "cached_tokens": request.cached_tokens,
            },
        }


class Answer:
    """Writes one request's tokens to its client; `done` is called after the last byte.

    A streamed answer is written at the first token, whenever `interval` tokens are unsent, and at the last.
    """

    def __init__(
        self,
        request: Request,
        form: Form,
        write: Callable[[bytes], None],
        done: Callable[[], None],
        *,
        stream: bool,
        interval: int,
    ) -> None:
        self._request = request
        self._form = form
        self._write = write
        self._done = done
        self._stream = stream
        self._interval = interval
        self._sent = 0  # tokens

    def advance(self) -> None:
        """The request has one more token, or has ended."""
        ended = self._request.finish_reason is not None
        if not self._stream or (self._request.error and self._sent == 0):
            if ended:
                self._write(self._whole())
                self._done()
        elif ended:
            self._write(self._chunk(self._last_events()) + b"0\r\n\r\n")
            self._done()
        elif self._sent == 0 or self._request.generated - self._sent >= self._interval:
            self._write(self._chunk(self._new_events()))

    def _whole(self) -> bytes:
        if error := self._request.error:
            return json_response(error_body(500, error), 500)
        return json_response(self._form.whole(self._request))

    def _chunk(self, events: bytes) -> bytes:
        head = STREAM_HEAD if self._sent == 0 else b""
        self._sent = self._request.generated
        return b"%b%x\r\n%b\r\n" % (head, len(events), events)

    def _new_events(self) -> bytes:
        start = self._form.start() if self._sent == 0 else b""
        return start + self._form.tokens(self._sent, self._request)

    def _last_events(self) -> bytes:
        if error := self._request.error:
            return _event({"error": error_body(500, error)}) + b"data: [DONE]\n\n"
        return self._new_events() + self._form.end(self._request) + b"data: [DONE]\n\n"
