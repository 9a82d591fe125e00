"""Reading answers: any bytes at all, cut anywhere, give a record; the right bytes give the right one."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from contracts.scripted_server import END, HEAD, chunk, event, token_events
from hypothesis import given
from hypothesis import strategies as st

from tuner.load.http import Connection, Exchange
from tuner.load.record import record_of
from tuner.load.sse import Answer, read_answer
from tuner.metrics import RequestError, RequestRecord

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


@pytest.mark.parametrize("count", ["5", -1, True, None, 2.5, [5]])
def test_usage_that_is_no_number_is_none(count: object) -> None:
    body = event(CHOICE | {"usage": {"prompt_tokens": 1, "completion_tokens": count}})
    assert read_answer(body).output_tokens is None


def test_informational_response_before_the_answer() -> None:
    wire = HEAD + b"".join(chunk(e) for e in token_events(5)) + END
    assert received(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + wire).error is None
