"""What is measured: request records in, `Metrics` out. Knows nothing of HTTP, SLOs or directions.

Times are seconds, rates are tokens or requests per second. Percentiles interpolate linearly between
order statistics (numpy's default, type 7 of Hyndman & Fan 1996).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

PERCENTILES = (50, 90, 95, 99)
_BATCHES = {20: (10, 2.262), 10: (5, 2.776)}  # from so many values: batches, Student's t at 0.975


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
    behind requests that were not sent; `late_s` is how long after that it was sent. `number` counts from the
    first measured request, in the order in which their prompts are given out.
    """

    sent_s: float
    ttft_s: float | None
    e2e_s: float | None
    input_tokens: int
    output_tokens: int
    error: RequestError | None = None
    status: int | None = None
    late_s: float | None = None
    number: int = 0

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: (e2e − ttft)/(n − 1); None for fewer than two tokens."""
        if self.error or self.ttft_s is None or self.e2e_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


@dataclass(frozen=True)
class Distribution:
    """Mean and percentiles of one latency, in seconds, over `n` requests (of ITL: gaps).

    `ci95` is the half width of the 95 % confidence interval of the mean; None for fewer than 10 requests.
    """

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    n: int
    ci95: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution | None:
        """The distribution of `values` (s), in the order of time; None where there are none."""
        if not len(values):
            return None
        p50, p90, p95, p99 = (float(p) for p in np.percentile(values, PERCENTILES))
        return cls(float(np.mean(values)), p50, p90, p95, p99, len(values), _half_width(values))


def _half_width(values: Sequence[float]) -> float | None:
    """Of the 95 % confidence interval of the mean, by batch means.

    Latencies of requests that run side by side resemble each other, so their spread alone would promise too
    much; the means of 10 successive batches (5 of a few values) are nearly independent (Law, Simulation
    Modeling and Analysis, section 9.5.3; Schmeiser 1982 advises 10 to 30 batches).
    """
    for fewest, (batches, quantile) in _BATCHES.items():
        if len(values) >= fewest:
            means = [np.mean(batch) for batch in np.array_split(np.asarray(values), batches)]
            return quantile * float(np.std(means, ddof=1)) / math.sqrt(batches)
    return None


@dataclass(frozen=True)
class Metrics:
    """What one load level showed. Latencies are of the requests that succeeded.

    `itl` is the time between successive reads that brought tokens, of all requests together: with TPOT's
    mean, but with the stalls that a mean over a request hides. `goodput` is the requests per second that
    kept every promise (None without promises). `late` is by how much requests were sent after they were
    due; None in a closed loop.
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
    requests_per_s: float = 0.0
    goodput: float | None = None
    itl: Distribution | None = None
    late: Distribution | None = None

    @property
    def total_tok_s(self) -> float:
        """Input and output tokens per second."""
        return self.input_tok_s + self.output_tok_s

    @property
    def success_rate(self) -> float:
        """Share of the requests that succeeded; 0 where there were none."""
        sent = self.requests_ok + self.requests_failed
        return self.requests_ok / sent if sent else 0.0


def summarise(
    records: Iterable[RequestRecord],
    *,
    window_s: float,
    gpus: int,
    warmup: Sequence[RequestRecord] = (),
    gaps_s: Sequence[float] = (),
    promises: Mapping[str, float] | None = None,
) -> Metrics:
    """Metrics of one load level.

    Latencies are of every request sent in the window of `window_s` seconds and answered, also of those
    that ended after it. Rates count what happened *inside* the window: input tokens at the first token's
    time, output tokens spread evenly between first and last token, so that requests in flight at either
    end of it (`warmup` are those that were sent before it) count with the part that was served in it;
    clients that drop them read low. A request counts in requests per second, and in the goodput, with the
    share of its output that came inside.

    `gaps_s` are the times between reads of tokens. `promises` are latencies (`latency`, `ttft`, `tpot`) and
    what each request must keep to, in s.
    """
    everything = list(records)
    good = [r for r in everything if _answered(r)]
    served = [(r, _inside(r, window_s)) for r in [*filter(_answered, warmup), *good]]
    input_tokens = sum(r.input_tokens * (0 <= _first_s(r) <= window_s) for r, _ in served)
    output_tokens = sum(r.output_tokens * share for r, share in served)
    kept = [share for r, share in served if _keeps(r, promises or {})]
    errors = Counter(str(r.error) for r in everything if r.error is not None)
    per_s = 1 / window_s if window_s > 0 else 0.0
    return Metrics(
        latency=Distribution.of([r.e2e_s for r in good if r.e2e_s is not None]),
        ttft=Distribution.of([r.ttft_s for r in good if r.ttft_s is not None]),
        tpot=Distribution.of([r.tpot_s for r in good if r.tpot_s is not None]),
        duration_s=window_s,
        requests_ok=len(good),
        requests_failed=len(everything) - len(good),
        errors=dict(errors),
        input_tok_s=input_tokens * per_s,
        output_tok_s=output_tokens * per_s,
        gpus=gpus,
        requests_per_s=sum(share for _, share in served) * per_s,
        goodput=sum(kept) * per_s if promises else None,
        itl=Distribution.of(gaps_s),
        late=Distribution.of([r.late_s for r in everything if r.late_s is not None]),
    )


def _answered(record: RequestRecord) -> bool:
    return record.error is None and record.e2e_s is not None and record.ttft_s is not None


def _first_s(record: RequestRecord) -> float:
    """When an answered request's first token came, in the window's time."""
    return record.sent_s + (record.ttft_s or 0.0)


def _inside(record: RequestRecord, window_s: float) -> float:
    """Share of an answered request's output tokens that came between 0 and `window_s`."""
    assert record.e2e_s is not None
    first, last, tokens = _first_s(record), record.sent_s + record.e2e_s, record.output_tokens
    if first >= 0 and last <= window_s:
        return 1.0
    if last < 0 or first > window_s or first == last:
        return 0.0
    alone = 1 / tokens if tokens else 0.0  # the first token's share
    return (first >= 0) * alone + (1 - alone) * (min(last, window_s) - max(first, 0.0)) / (last - first)


def _keeps(record: RequestRecord, promises: Mapping[str, float]) -> bool:
    """Whether an answered request kept every promise; one token keeps any on the time per token."""
    seen = {"latency": record.e2e_s, "ttft": record.ttft_s, "tpot": record.tpot_s}
    return all((value := seen[name]) is None or value <= most for name, most in promises.items())
