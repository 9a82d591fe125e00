"""What is measured: request records in, `Metrics` out. Knows nothing of HTTP, SLOs or directions.

Times are seconds, rates are tokens or requests per second. Percentiles interpolate linearly between
order statistics (numpy's default, type 7 of Hyndman & Fan 1996).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

PERCENTILES = (50, 90, 95, 99)


class RequestError(StrEnum):
    """Why a request did not succeed."""

    CONNECTION = "connection"  # refused, reset, or closed before the response ended
    HTTP = "http status"  # answered with a status other than 200
    TIMEOUT = "timeout"  # no complete response within the request's limit
    MALFORMED = "malformed response"  # 200, but not a stream of completion chunks with usage
    TRUNCATED = "truncated"  # the stream ended before its [DONE], or with fewer tokens than asked for


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as the client saw it.

    `sent_s` counts from the start of the measured window. `ttft_s` and `e2e_s` count from the moment
    at which the request was sent (None for what never came). Token counts are the server's `usage`.
    In an open loop `sent_s` is when the request was *due*, so that a stalled server or client cannot hide
    behind requests that were not sent; `late_s` is how long after that it was sent.
    """

    sent_s: float
    ttft_s: float | None
    e2e_s: float | None
    input_tokens: int
    output_tokens: int
    error: RequestError | None = None
    status: int | None = None
    late_s: float | None = None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: (e2e − ttft)/(n − 1); None for fewer than two tokens."""
        if self.error or self.ttft_s is None or self.e2e_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


@dataclass(frozen=True)
class Distribution:
    """Mean and percentiles of one latency, in seconds, over `n` requests."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution | None:
        """The distribution of `values` (s); None where there are none."""
        if not values:
            return None
        p50, p90, p95, p99 = (float(p) for p in np.percentile(values, PERCENTILES))
        return cls(float(np.mean(values)), p50, p90, p95, p99, len(values))


@dataclass(frozen=True)
class Metrics:
    """What one load level showed. Latencies are of the requests that succeeded.

    `late` is by how much requests were sent after they were due; None in a closed loop.
    """

    latency: Distribution | None
    ttft: Distribution | None
    tpot: Distribution | None
    duration_s: float
    requests_ok: int
    requests_failed: int
    errors: dict[str, int] = field(default_factory=dict)
    input_tok_s: float = 0.0
    output_tok_s: float = 0.0
    gpus: int = 1
    late: Distribution | None = None

    @property
    def total_tok_s(self) -> float:
        """Input and output tokens per second."""
        return self.input_tok_s + self.output_tok_s

    @property
    def requests_per_s(self) -> float:
        """Successful requests per second."""
        return self.requests_ok / self.duration_s if self.duration_s > 0 else 0.0

    @property
    def success_rate(self) -> float:
        """Share of the requests that succeeded; 0 where there were none."""
        sent = self.requests_ok + self.requests_failed
        return self.requests_ok / sent if sent else 0.0


def summarise(records: Iterable[RequestRecord], *, window_s: float, gpus: int) -> Metrics:
    """Metrics of one load level.

    Latencies are of every request sent in the window of `window_s` seconds and answered, also of those
    that ended after it. Throughput counts what happened *inside* the window: input tokens at the first
    token's time, output tokens spread evenly between first and last token, so that requests in flight
    at the window's end count with the part that was served (clients that drop them read low).
    """
    everything = list(records)
    good = [r for r in everything if r.error is None and r.e2e_s is not None and r.ttft_s is not None]
    input_tokens = sum(r.input_tokens * (r.sent_s + (r.ttft_s or 0.0) <= window_s) for r in good)
    output_tokens = sum(_tokens_inside(r, window_s) for r in good)
    errors = Counter(str(r.error) for r in everything if r.error is not None)
    return Metrics(
        latency=Distribution.of([r.e2e_s for r in good if r.e2e_s is not None]),
        ttft=Distribution.of([r.ttft_s for r in good if r.ttft_s is not None]),
        tpot=Distribution.of([r.tpot_s for r in good if r.tpot_s is not None]),
        duration_s=window_s,
        requests_ok=len(good),
        requests_failed=len(everything) - len(good),
        errors=dict(errors),
        input_tok_s=input_tokens / window_s if window_s > 0 else 0.0,
        output_tok_s=output_tokens / window_s if window_s > 0 else 0.0,
        gpus=gpus,
        late=Distribution.of([r.late_s for r in everything if r.late_s is not None]),
    )


def _tokens_inside(record: RequestRecord, window_s: float) -> float:
    """Output tokens of a successful request that arrived before `window_s`."""
    assert record.ttft_s is not None and record.e2e_s is not None
    first, last = record.sent_s + record.ttft_s, record.sent_s + record.e2e_s
    if last <= window_s:
        return record.output_tokens
    if first > window_s:
        return 0.0
    return 1 + (record.output_tokens - 1) * (window_s - first) / (last - first)
