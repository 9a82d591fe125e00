"""Whether a load level was measured while the load client itself was the limit: then it tells of the client.

The thresholds are chosen, not measured: a tenth of the shortest latency that is judged is where an error
begins to matter, and a core that is busy for four fifths of the time answers late more and more often.
"""

from __future__ import annotations

from tuner.load.base import LoadResult
from tuner.metrics import Metrics

CPU_SHARE = 0.8  # of one core, on average over the window
LATE_SHARE = 0.1  # of the mean TTFT, for the 99th percentile of what makes the client late
LATE_S = 0.005  # that is never called late


def client_limit(result: LoadResult, metrics: Metrics) -> str | None:
    """In a few words, in what way the client was the limit; None where it was not."""
    if result.held:
        return f"max_concurrency held {result.held} requests back"
    if result.client_cpu > CPU_SHARE:
        return f"its CPU was busy {result.client_cpu:.0%} of the time"
    late_s = max(LATE_S, LATE_SHARE * (metrics.ttft.mean if metrics.ttft else 0.0))
    if result.client_lag_p99_s > late_s:
        return f"its event loop was {1e3 * result.client_lag_p99_s:.0f} ms late (p99)"
    if metrics.late is not None and metrics.late.p99 > late_s:
        return f"requests were sent {1e3 * metrics.late.p99:.0f} ms late (p99)"
    return None
