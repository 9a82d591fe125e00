"""Whether a load level was measured while the load client itself was the limit: then it tells of the client.

What counts is what decisions hang on: a loop that is 3 ms late makes nothing of an end-to-end latency of a
second, and much of a first token that comes after 10 ms. Beside CPU hogs, on two cores, a mean was wrong by
a quarter of the loop's mean lateness (median; 1.3 times it in nine levels of ten), and a 99th percentile by
less than a quarter of the lateness's in nine of ten (docs/load.md).
"""

from __future__ import annotations

from collections.abc import Iterable

from tuner.load.base import LoadResult
from tuner.metrics import Metrics
from tuner.objective import MEAN, Steering

CPU_SHARE = 0.8  # of one core, on average over the window: above it, a core answers late more and more often
SHARES = {MEAN: 0.03}  # of a statistic, that the same of the lateness may be
PERCENTILE_SHARE = 0.1
HELD_BACK = "max_concurrency held"  # begins what is said where an engine fell so far behind a rate
FLOORS_S = {MEAN: 0.0005}  # that is never called late: timers of whole milliseconds make it
PERCENTILE_FLOOR_S = 0.005


def client_limit(result: LoadResult, metrics: Metrics, steering: Iterable[Steering]) -> str | None:
    """In a few words, in what way the client was the limit for what it is to show; None where it was not."""
    if result.held:
        return f"{HELD_BACK} {result.held} requests back"
    if result.client_cpu > CPU_SHARE:
        return f"its CPU was busy {result.client_cpu:.0%} of the time"
    found = []
    for what, late in (("its event loop was", result.client_lag), ("requests were sent", metrics.late)):
        for latency, statistic in steering:
            whole_s = _timed_s(metrics, latency, statistic)
            if late is None or not whole_s:
                continue
            late_s = float(getattr(late, statistic))
            most_s = SHARES.get(statistic, PERCENTILE_SHARE) * whole_s
            if late_s > max(most_s, FLOORS_S.get(statistic, PERCENTILE_FLOOR_S)):
                share = late_s / whole_s
                text = (
                    f"{what} {1e3 * late_s:.1f} ms late ({statistic}), {share:.0%} of {latency} {statistic}"
                )
                found.append((share, text))
    return max(found)[1] if found else None


def _timed_s(metrics: Metrics, latency: str, statistic: str) -> float | None:
    """The time between the two stamps of a latency: for TPOT that of all tokens after the first."""
    distribution = getattr(metrics, latency)
    if distribution is None:
        return None
    if latency != "tpot":
        return float(getattr(distribution, statistic))
    if metrics.latency is None or metrics.ttft is None:
        return None
    return metrics.latency.mean - metrics.ttft.mean
