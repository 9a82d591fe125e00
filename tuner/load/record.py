"""From an exchange that is over to its `RequestRecord`. Knows nothing of loops or load levels."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from http import HTTPStatus
from operator import sub

from tuner.load.http import Exchange
from tuner.load.sse import Answer, read_answer
from tuner.metrics import RequestError, RequestRecord

_SAME_S = 1e-7  # stamps are nearer to each other only by rounding


def record_of(exchange: Exchange, started_s: float) -> RequestRecord:
    """The record of `exchange` in a window that started at `started_s` (`perf_counter`).

    TTFT ends at the read that brought the first text, e2e at the read that brought the last choice.
    """
    answer = read_answer(exchange.body)
    error = _error(exchange, answer)
    return RequestRecord(
        sent_s=exchange.counts_from_s - started_s,
        ttft_s=_seconds_to(answer.first, exchange),
        e2e_s=_seconds_to(answer.last, exchange) if error is None else None,
        input_tokens=answer.input_tokens or 0,
        output_tokens=answer.output_tokens or 0,
        error=error,
        status=exchange.status,
        late_s=None if exchange.due_s is None else exchange.sent_s - exchange.due_s,
        number=exchange.number,
    )


def glanced(exchange: Exchange, started_s: float) -> RequestRecord:
    """The record of an exchange that ended well, from its stamps alone."""
    assert exchange.first_body_s is not None
    return RequestRecord(
        sent_s=exchange.counts_from_s - started_s,
        ttft_s=exchange.first_body_s - exchange.counts_from_s,
        e2e_s=exchange.stamps[-1] - exchange.counts_from_s,
        input_tokens=0,
        output_tokens=exchange.asked_tokens,
        number=exchange.number,
    )


def gaps_of(exchange: Exchange, record: RequestRecord) -> array[float]:
    """Seconds between successive reads from the first token to the last, of a request that succeeded."""
    if record.error is not None or record.ttft_s is None or record.e2e_s is None:
        return array("f")
    first, last = (exchange.counts_from_s + seconds for seconds in (record.ttft_s, record.e2e_s))
    reads = exchange.stamps[bisect_left(exchange.stamps, first - _SAME_S) :]
    reads = reads[: bisect_left(reads, last + _SAME_S)]
    return array("f", map(sub, reads[1:], reads))


def _seconds_to(offset: int | None, exchange: Exchange) -> float | None:
    """Seconds from sending, or from when it was due, to the read with which the body reached `offset`."""
    if offset is None:
        return None
    return exchange.stamps[bisect_left(exchange.ends, offset)] - exchange.counts_from_s


def _error(exchange: Exchange, answer: Answer) -> RequestError | None:
    """Why it failed; None where all that was asked for came, even if the connection broke after it."""
    if exchange.status not in (None, HTTPStatus.OK):
        return RequestError.HTTP
    shown = answer.sound and answer.first is not None
    if exchange.fault is not None and not (shown and answer.done):
        return exchange.fault
    counted = answer.input_tokens is not None and answer.output_tokens is not None
    if not shown or (answer.done and not counted):
        return RequestError.MALFORMED
    short = (answer.output_tokens or 0) < exchange.asked_tokens and answer.finish_reason != "stop"
    return RequestError.TRUNCATED if short or not answer.done else None
