"""The native load generator against servers that misbehave, die, or cut their answers up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter

import pytest
from contracts.load_contract import level, put
from contracts.scripted_server import (
    END,
    HEAD,
    Call,
    Script,
    ScriptedServer,
    chunk,
    event,
    status,
    streaming,
    token_events,
)

from tuner.load import client
from tuner.load.client import NativeClient
from tuner.metrics import RequestError, summarise
from tuner.prompts import prompts
from tuner.workload import LoadLevel


def outcomes(script: Script, load: LoadLevel | None = None) -> list[RequestError | None]:
    """The errors of a run on a server with `script`."""
    with ScriptedServer(script) as server:
        return [r.error for r in put(NativeClient(), server.url, load or level(max_requests=3)).records]


@pytest.mark.parametrize("code", [404, 429, 500, 503])
def test_bad_status(code: int) -> None:
    with ScriptedServer(status(code)) as server:
        result = put(NativeClient(), server.url, level(max_requests=3))
    assert {(r.error, r.status, r.e2e_s) for r in result.records} == {(RequestError.HTTP, code, None)}
    assert server.connections == 2  # the connection is as good as before


def test_a_record_stands_at_the_place_of_its_prompt_though_connections_are_closed() -> None:
    """Who has to connect again sends later than those that were given their prompts after it."""

    async def script(call: Call) -> None:
        closes = call.number % 3 == 0
        body = b"".join(token_events(call.body["max_tokens"]))
        kept = b"close" if closes else b"keep-alive"
        head = b"HTTP/1.1 200 OK\r\nConnection: %b\r\nContent-Length: %d\r\n\r\n" % (kept, len(body))
        await call.send(head + body)
        if closes:
            call.close()

    load = level("U(5,20)/(1,40)", concurrency=16, max_requests=200, warmup_requests=10)
    with ScriptedServer(script) as server:
        records = put(NativeClient(), server.url, load).records
    assert [record.number for record in records] == list(range(200))
    texts = prompts(load)
    assert [record.output_tokens for record in records] == [
        texts[10 + number].output_tokens for number in range(200)
    ]


@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_asks_to_come_back_later_is_counted_and_not_waited_for(code: int) -> None:
    """Half of its answers are refusals, with a Retry-After of an hour; the others are what was measured."""

    async def script(call: Call) -> None:
        if call.number % 2:
            head = b"HTTP/1.1 %d Busy\r\nRetry-After: 3600\r\nContent-Length: 4\r\n\r\nbusy"
            await call.send(head % code)
        else:
            await streaming()(call)

    with ScriptedServer(script) as server:
        result = put(NativeClient(), server.url, level(concurrency=2, max_requests=12), timeout_s=60)
    refused = [r for r in result.records if r.error is RequestError.HTTP]
    served = [r for r in result.records if r.error is None]
    assert (len(refused), len(served)) == (6, 6)
    assert {(r.status, r.e2e_s) for r in refused} == {(code, None)}
    assert all(r.e2e_s is not None and r.output_tokens == 5 for r in served)
    metrics = summarise(result.records, window_s=result.window_s, gpus=1)
    assert (metrics.success_rate, metrics.requests_ok) == (0.5, 6)
    assert len(server.calls) == 12 and server.connections == 2  # each asked once, over kept connections


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>welcome</html>",
        b"data: not json\n\ndata: [DONE]\n\n",
        b'data: {"error": {"message": "out of memory"}}\n\ndata: [DONE]\n\n',
        b"data: [DONE]\n\n",
        b'data: {"choices": 3}\n\ndata: [DONE]\n\n',
        b'{"choices": [{"text": "not a stream"}], "usage": {"prompt_tokens": 1, "completion_tokens": 5}}',
        b"data: " + b"[" * 100_000 + b"\n\n",
        b"\xff\xfe\x00",
    ],
)
def test_rubbish_with_status_200(body: bytes) -> None:
    assert outcomes(status(200, body)) == [RequestError.MALFORMED] * 3


def test_no_http_at_all() -> None:
    async def script(call: Call) -> None:
        await call.send(b"SSH-2.0-OpenSSH_9.6\r\n")

    assert outcomes(script) == [RequestError.MALFORMED] * 3


def test_no_usage() -> None:
    assert outcomes(streaming(usage=False)) == [RequestError.MALFORMED] * 3


def test_reset_before_and_within_the_response() -> None:
    async def script(call: Call) -> None:
        if call.number % 2:
            await call.send(HEAD, chunk(event({"choices": [{"text": "x"}]})))
        call.reset()

    assert outcomes(script) == [RequestError.CONNECTION] * 3


def test_closed_within_the_response() -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD, chunk(event({"choices": [{"text": "x"}]})))
        call.close()

    assert outcomes(script) == [RequestError.CONNECTION] * 3


def test_error_in_mid_stream() -> None:
    async def script(call: Call) -> None:
        events = [event({"choices": [{"text": "x"}]}), event({"error": {"message": "x"}}), event("[DONE]")]
        await call.send(HEAD, *(chunk(e) for e in events), END)

    assert outcomes(script) == [RequestError.MALFORMED] * 3


def test_stream_without_its_end() -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD, *(chunk(e) for e in token_events(5)[:-2]), END)

    assert outcomes(script) == [RequestError.TRUNCATED] * 3


def test_fewer_tokens_than_asked_for() -> None:
    def script(reason: str) -> Script:
        async def answer(call: Call) -> None:
            await call.send(HEAD, *(chunk(e) for e in token_events(3, finish_reason=reason)), END)

        return answer

    assert outcomes(script("length")) == [RequestError.TRUNCATED] * 3
    assert outcomes(script("stop")) == [None] * 3


def test_answer_that_is_whole_counts_though_its_connection_breaks() -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD, *(chunk(e) for e in token_events(5)))
        call.close()

    assert outcomes(script) == [None] * 3


def test_kept_connection_dropped_by_the_server_is_tried_again() -> None:
    async def script(call: Call) -> None:
        if call.on_connection == 1:
            call.reset()
        else:
            await streaming()(call)

    load = level(concurrency=1, max_requests=5)
    with ScriptedServer(script) as server:
        result = put(NativeClient(), server.url, load)
    assert [r.error for r in result.records] == [None] * 5
    assert server.connections == 5


def test_server_that_closes_after_each_response() -> None:
    async def script(call: Call) -> None:
        body = b"".join(token_events(5))
        await call.send(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body), body
        )
        call.close()

    assert outcomes(script, level(max_requests=8)) == [None] * 8


def test_server_that_dies_in_mid_run() -> None:
    async def script(call: Call) -> None:
        if call.number == 9:
            threading.Thread(target=server.die).start()
        await streaming(pause_s=0.01)(call)

    with ScriptedServer(script) as server:
        result = put(NativeClient(), server.url, level(concurrency=4, max_requests=40))
    errors = Counter(r.error for r in result.records)
    assert set(errors) == {None, RequestError.CONNECTION}
    assert sum(errors.values()) == 40


def test_endless_rubbish_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BODY_BYTES", 1000)
    monkeypatch.setattr(client, "BODY_BYTES_PER_TOKEN", 1)

    async def script(call: Call) -> None:
        await call.send(HEAD)
        while True:
            await call.send(chunk(b"x" * 500))

    assert set(outcomes(script)) == {RequestError.MALFORMED}


# However the answer is framed and cut up.


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_any_framing_in_any_pieces(framing: str, size: int) -> None:
    async def script(call: Call) -> None:
        events = b": keep-alive\r\n\r\n" + b"".join(token_events(5)).replace(b"\n", b"\r\n")
        halves = events[: len(events) // 2], events[len(events) // 2 :]
        wire = {
            "chunked": HEAD + chunk(halves[0]) + chunk(halves[1]) + b"0\r\nX-Trailer: 1\r\n\r\n",
            "length": b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(events), events),
            "close": b"HTTP/1.1 200 OK\r\n\r\n" + events,
        }[framing]
        for start in range(0, len(wire), size):
            call.writer.write(wire[start : start + size])
            if start // size % 50 == 0:
                await asyncio.sleep(0)
        if framing == "close":
            call.close()

    with ScriptedServer(script) as server:
        result = put(NativeClient(), server.url, level(max_requests=4))
    assert {(r.error, r.input_tokens, r.output_tokens) for r in result.records} == {(None, 7, 5)}


def test_first_token_is_the_first_with_text_and_the_end_is_the_last_choice() -> None:
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    one = {"choices": [{"delta": {"content": "x"}}]}
    finish = {"choices": [{"delta": {}, "finish_reason": "length"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}

    async def script(call: Call) -> None:
        parts = [chunk(event(payload)) for payload in (role, one, finish, usage, "[DONE]")]
        await call.send(HEAD, *parts, END, pause_s=0.1)

    with ScriptedServer(script) as server:
        started_s = time.perf_counter()
        [record] = put(NativeClient(), server.url, level(max_requests=1)).records
        took_s = time.perf_counter() - started_s
    assert record.error is None
    assert record.ttft_s is not None and record.e2e_s is not None
    assert record.ttft_s > 0.19  # HEAD and the role went before
    assert 0.29 < record.e2e_s < took_s - 0.19  # usage and [DONE] came after
