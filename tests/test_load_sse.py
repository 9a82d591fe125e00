"""Reading answers: any bytes at all, cut anywhere, give a record; the right bytes give the right one."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from contracts.scripted_server import END, HEAD, chunk, event, token_events
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.load.http import Connection, Exchange
from tuner.load.record import record_of
from tuner.load.sse import Answer, read_answer
from tuner.metrics import RequestError, RequestRecord, summarise

CHOICE = {"choices": [{"text": "x", "finish_reason": None}]}


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    def write(self, data: Any) -> None:
        """Drops the data."""

    def abort(self) -> None:
        """Does nothing."""


def received(*reads: bytes, asked_tokens: int = 5, closed: bool = True) -> RequestRecord:
    """The record of a request whose response came in these reads, the i-th of them i + 1 s after it."""

    async def exchange() -> Exchange:
        result = Exchange(asked_tokens, 10**6, 0.0)
        connection = Connection()
        connection.connection_made(Wire())
        asking = asyncio.create_task(connection.ask(b"", result))
        await asyncio.sleep(0)
        for read in reads:
            connection.data_received(read)
        if closed:
            connection.connection_lost(None)
        await asking
        return result

    result = asyncio.run(exchange())
    result.sent_s = 0.0
    for i in range(len(result.stamps)):
        result.stamps[i] = i + 1.0
    return record_of(result, 0.0)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at these places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


CUTS = st.lists(st.integers(0, 10**6), max_size=40)


@given(CUTS, CUTS, st.sampled_from([1, 2, 5]), st.booleans())
def test_fragmentation_changes_nothing(
    cuts: list[int], chunks: list[int], per_event: int, crlf: bool
) -> None:
    body = b"".join(token_events(5, per_event=per_event))
    if crlf:
        body = body.replace(b"\n", b"\r\n")
    wire = HEAD + b"".join(chunk(part) for part in pieces(body, chunks)) + END
    record = received(*pieces(wire, cuts), closed=False)
    assert (record.error, record.input_tokens, record.output_tokens) == (None, 7, 5)
    assert record.ttft_s is not None and record.e2e_s is not None
    assert 1 <= record.ttft_s <= record.e2e_s


@given(CUTS, st.integers(0, 10**6))
def test_a_response_cut_anywhere_is_whole_or_a_failure(cuts: list[int], end: int) -> None:
    wire = HEAD + b"".join(chunk(e) for e in token_events(5)) + END
    cut = wire[: end % len(wire)]
    record = received(*pieces(cut, cuts))
    assert record.error in ((RequestError.CONNECTION,) if b"[DONE]" not in cut else (None,))


@given(st.binary(max_size=400))
def test_any_bytes_give_an_answer(body: bytes) -> None:
    read_answer(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "usage", "text", "delta", "error", "finish_reason", "completion_tokens", "role"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4))
def test_any_json_gives_a_record(payloads: list[Any]) -> None:
    body = b"".join(event(json.dumps(payload)) for payload in payloads) + event("[DONE]")
    record = received(HEAD, chunk(body), END)
    if record.error is None:
        assert record.ttft_s is not None and record.e2e_s is not None


BITS = st.sampled_from(
    [
        *(b"data: ", b"data:", b"data", b"\n", b"\r\n", b"\n\n", b": comment\n", b"event: x\n", b"\xff"),
        *(
            b"[DONE]",
            b'{"choices": [',
            b"]}",
            b'{"text": "a"}',
            b'{"text": ""}',
            b"null",
            b",",
            b'"error": 1',
        ),
        *(
            b'{"delta": {"role": "a"}}',
            b'{"usage": {"completion_tokens": ',
            b"5}}",
            b'9e999}, "choices": []}',
        ),
    ]
)
BODIES = st.lists(BITS | st.binary(max_size=3), max_size=30).map(b"".join)
FRAMINGS = st.sampled_from(
    [
        lambda body: HEAD + chunk(body) + END,
        lambda body: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
        lambda body: b"HTTP/1.1 200 OK\r\n\r\n" + body,
        lambda body: b"HTTP/1.1 %b 1\r\n\r\n" % body,
        lambda body: HEAD + body,
        lambda body: b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" + body,
    ]
)


@given(BODIES, FRAMINGS, CUTS)
@settings(max_examples=200)
def test_any_body_is_read_the_same_however_it_is_cut(body: bytes, framing: Any, cuts: list[int]) -> None:
    wire = framing(body)
    whole, cut = (received(*reads) for reads in ([wire], pieces(wire, cuts)))
    assert replace(cut, ttft_s=whole.ttft_s, e2e_s=whole.e2e_s) == whole
    metrics = summarise([cut], window_s=1.0, gpus=1)
    assert math.isfinite(metrics.total_tok_s) and metrics.requests_ok + metrics.requests_failed == 1


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5))
def test_any_wire_gives_a_record(reads: list[bytes]) -> None:
    assert received(*reads).error is not None


def test_stamps_are_those_of_the_reads_that_brought_the_tokens() -> None:
    events = [chunk(e) for e in token_events(3)]
    half = len(events[0]) // 2
    record = received(
        HEAD,
        events[0][:half],
        events[0][half:],
        events[1],
        events[2] + events[3],
        events[4] + END,
        asked_tokens=3,
    )
    assert (record.ttft_s, record.e2e_s, record.tpot_s) == (3.0, 5.0, 1.0)


def test_tokens_without_text_count_from_the_usage() -> None:
    silent = [event({"choices": [{"text": "", "finish_reason": None}]})] * 2
    last = event({"choices": [{"text": "", "finish_reason": "length"}]})
    usage = event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 5}})
    record = received(HEAD, *(chunk(e) for e in (*silent, last, usage, event("[DONE]"))), END)
    assert (record.error, record.ttft_s, record.e2e_s, record.output_tokens) == (None, 2.0, 4.0, 5)


def test_usage_may_come_with_every_event() -> None:
    body = b"".join(
        event(CHOICE | {"usage": {"prompt_tokens": 3, "completion_tokens": i}}) for i in range(1, 6)
    )
    assert read_answer(body + event("[DONE]")).output_tokens == 5


@pytest.mark.parametrize("key", ["content", "reasoning_content", "tool_calls"])
def test_chat_deltas_show_tokens_and_roles_do_not(key: str) -> None:
    role = event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    shown = event({"choices": [{"delta": {key: "x"}}]})
    assert read_answer(role + shown).first == len(role + shown) - 2
    assert read_answer(role).first is None


def test_an_event_that_was_cut_off_is_none() -> None:
    whole = event(CHOICE)
    assert read_answer(whole + b'data: {"choices": [{"te') == read_answer(whole)
    assert read_answer(b"") == Answer()


def test_done_needs_no_line_end() -> None:
    assert read_answer(event(CHOICE) + b"data: [DONE]").done


@pytest.mark.parametrize("count", ["5", -1, True, None, 2.5, [5], 10**30])
def test_usage_that_is_no_number_is_none(count: object) -> None:
    body = event(CHOICE | {"usage": {"prompt_tokens": 1, "completion_tokens": count}})
    assert read_answer(body).output_tokens is None


def test_a_switch_to_another_protocol_is_no_answer() -> None:
    wire = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nabc"
    assert received(wire).error is RequestError.HTTP


def test_informational_response_before_the_answer() -> None:
    wire = HEAD + b"".join(chunk(e) for e in token_events(5)) + END
    assert received(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + wire).error is None
