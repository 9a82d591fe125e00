"""What became of the requests of a warm-up or of a measured window. Knows nothing of how they are sent."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from http import HTTPStatus
from time import perf_counter

from tuner.load.base import Glance
from tuner.load.http import Exchange
from tuner.load.record import gaps_of, glanced, record_of
from tuner.metrics import RequestError, RequestRecord

SAID_BYTES = 300  # of a refusal that are kept
UNREAD_BYTES = 256 * 2**20  # of answers kept to be read after the window; beyond, they are read at once


class Window:
    """Some requests to put on a server until they run out or the time is up, by whatever clock.

    `started_s` is when the first was sent or due, `idle_s` when a slot first came free and sent no other
    one; in an open loop, when the first would be due that is not sent any more. `held` counts requests
    that were due and had to wait for others to end.
    """

    def __init__(self, numbers: range, max_time_s: float, started_s: float) -> None:
        self.numbers = numbers
        self.started_s = started_s
        self.stop_s = started_s + max_time_s
        self.idle_s = math.inf
        self.held = 0
        self._left = iter(numbers)

    def next_number(self, now_s: float) -> int | None:
        """The number of the next request to send; None when there is no other."""
        number = next(self._left, None) if now_s < self.stop_s else None
        if number is None:
            self.idle_s = min(self.idle_s, now_s)
        return number

    def done(self, ended: int, now_s: float) -> float:
        """How much of it is done when so many requests have ended, by time or by requests."""
        by_time = (now_s - self.started_s) / (self.stop_s - self.started_s)
        return min(max(ended / len(self.numbers), by_time), 1.0) if len(self.numbers) else 1.0

    def window_s(self, over_s: float) -> float:
        """How long the concurrency was whole, in a run that was over at `over_s`."""
        return max(min(self.idle_s, self.stop_s, over_s) - self.started_s, 0.0)


def in_order(records: Iterable[RequestRecord]) -> tuple[RequestRecord, ...]:
    """By number: the same place is the same prompt in every trial, whatever the order of sending."""
    return tuple(sorted(records, key=lambda record: record.number))


class Phase(Window):
    """A window of real time, and what came back within it."""

    def __init__(self, numbers: range, max_time_s: float, started_s: float | None = None) -> None:
        super().__init__(numbers, max_time_s, perf_counter() if started_s is None else started_s)
        self._heard_s = -math.inf
        self._in_flight: set[Exchange] = set()
        self._unread: list[Exchange] = []
        self._unread_bytes = 0
        self._records: list[RequestRecord] = []
        self.gaps_s = array("f")
        self.said = ""  # by the first answer with a status of failure

    def began(self, exchange: Exchange) -> None:
        """Takes note of an exchange in flight."""
        self._in_flight.add(exchange)

    def ended(self, exchange: Exchange) -> None:
        """Takes note of its end. It is read later, unless very much waits to be read."""
        self._in_flight.remove(exchange)
        if not self.said and exchange.status not in (None, HTTPStatus.OK):
            self.said = " ".join(exchange.body[:SAID_BYTES].decode(errors="replace").split())
        self._heard_s = max(self._heard_s, *exchange.stamps[-1:], -math.inf)
        self._unread.append(exchange)
        self._unread_bytes += len(exchange.body)
        if self._unread_bytes > UNREAD_BYTES:
            self._read()

    def goes_on(self, at_s: float) -> None:
        """Forgets what has ended, and counts time from `at_s`, for what is still in flight."""
        self.started_s = at_s
        self._unread.clear()
        self._unread_bytes = 0
        self._records.clear()

    def share(self) -> float:
        """How much of it is done."""
        return self.done(len(self._unread) + len(self._records), perf_counter())

    def glance(self, share: float) -> Glance:
        """What it has shown so far; see `Glance`."""
        window_s = perf_counter() - self.started_s
        records = [glanced(exchange, self.started_s) for exchange in self._unread if not exchange.unserved]
        return Glance(share, (*self._records, *records), window_s)

    @property
    def waits_since_s(self) -> float:
        """When the oldest request in flight was sent; infinity where none is."""
        return min((exchange.sent_s for exchange in self._in_flight), default=math.inf)

    @property
    def heard_s(self) -> float:
        """When something of an answer's body came last, or an answer ended; minus infinity before that."""
        return max([self._heard_s, *(each.last_body_s or -math.inf for each in self._in_flight)])

    def records(self, unfinished: RequestError) -> tuple[RequestRecord, ...]:
        """A record of each request, by number; those still in flight failed by `unfinished`."""
        for exchange in self._in_flight:
            exchange.fault = unfinished
        self._unread.extend(self._in_flight)
        self._in_flight.clear()
        self._read()
        return in_order(self._records)

    def _read(self) -> None:
        for exchange in self._unread:
            record = record_of(exchange, self.started_s)
            self._records.append(record)
            self.gaps_s.extend(gaps_of(exchange, record))
        self._unread.clear()
        self._unread_bytes = 0


def quiet_s(*phases: Phase) -> float:
    """For how long nothing has come back for any of their requests in flight; 0 where none is.

    Of all at once: what the warm-up has left in flight may be served long before a measured request is.
    """
    waits_since_s = min(phase.waits_since_s for phase in phases)
    return max(perf_counter() - max(waits_since_s, *(phase.heard_s for phase in phases)), 0.0)
