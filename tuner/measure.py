"""One load level on a server that runs: what clients, engine and GPUs showed, or why it cannot be believed.

Knows nothing of configurations, scores or Ray.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tuner.engines.base import RunningEngine
from tuner.engines.gpus import Nvml
from tuner.engines.meters import GpuFigures, metered
from tuner.engines.telemetry import EngineFigures, watched
from tuner.failures import Cause, Failure, Stage, TrialFailed
from tuner.load.base import Glance, LoadGenerator, LoadResult, Target
from tuner.load.limit import client_limit
from tuner.metrics import Metrics, RequestError, summarise
from tuner.task import Task
from tuner.workload import LoadLevel

_EXIT_SEEN_S = 2.0  # a broken connection is noticed before the exit code of the process behind it


@dataclass(frozen=True)
class Step:
    """One finished load level.

    `client_limit` says in what way the load client was the limit, not the engine; None where it was not.
    """

    level: LoadLevel
    load: LoadResult
    metrics: Metrics
    engine: EngineFigures = field(default_factory=EngineFigures)
    gpu: GpuFigures = field(default_factory=GpuFigures)
    client_limit: str | None = None


@dataclass(frozen=True)
class Limit:
    """When a trial has to be over, in seconds by a clock of its own."""

    clock: Callable[[], float]
    at_s: float

    @property
    def left_s(self) -> float:
        """Seconds that are left; negative once it is over."""
        return self.at_s - self.clock()


NO_LIMIT = Limit(lambda: 0.0, math.inf)


@dataclass(frozen=True)
class Probe:
    """What every load level of a trial is measured with.

    Rates are divided by `gpus`. `limit` is the trial's. The GPUs `gpu_ids` are looked at through `nvml`,
    where there is one.
    """

    task: Task
    server: RunningEngine
    load: LoadGenerator
    gpus: int
    limit: Limit = NO_LIMIT
    gpu_ids: Sequence[str] = ()
    nvml: Nvml | None = None

    def measure(
        self,
        level: LoadLevel,
        *,
        seen: Callable[[Glance], None] | None = None,
        left: Callable[[], bool] = lambda: False,
    ) -> Step:
        """One load level, on a clean cache unless it is to stay warm; TrialFailed if it cannot be believed.

        It ends as soon as `left` says that nobody waits for it any more.
        """
        server, task = self.server, self.task
        if not task.benchmark.keep_cache:
            server.flush_cache()
        if (remaining_s := self.limit.left_s) <= 0:
            raise self._out_of_time()
        with watched(server.base_url, server.api_key) as telemetry, metered(self.gpu_ids, self.nvml) as meter:
            result = self.load.run(
                self._target(),
                level,
                healthy=lambda: server.alive() and not left(),
                timeout_s=remaining_s,
                stall_s=task.engine.hang_timeout,
                seen=seen,
            )
        metrics = summarise(
            result.records,
            window_s=result.window_s,
            gpus=self.gpus,
            warmup=result.warmup,
            gaps_s=result.gaps_s,
            promises=task.slo_terms.of_each_request,
        )
        self._believe(result, metrics)
        kept = replace(result, warmup=(), gaps_s=())  # all that is wanted of these is known
        return Step(
            level,
            kept,
            metrics,
            telemetry.figures(result.window),
            meter.figures(result.window),
            client_limit(result, metrics, task.steering),
        )

    def _target(self) -> Target:
        load, server = self.task.benchmark, self.server
        tokenizer = load.model_tokenizer or self.task.model.id_or_path
        return Target(server.base_url, server.model, load.additional_params, tokenizer, server.api_key)

    def _believe(self, result: LoadResult, metrics: Metrics) -> None:
        """Raises TrialFailed where the server died, hung, or refused too much."""
        if RequestError.CONNECTION in metrics.errors:
            self._await_exit()
        self.server.raise_if_failed()
        if result.stalled:
            limit_s = self.task.engine.hang_timeout
            detail = f"served nothing for {limit_s:g} s (engine.hang_timeout) with requests in flight"
            raise TrialFailed(Failure(Stage.LOAD, Cause.HANG, detail))
        if RequestError.TIMEOUT in metrics.errors and self.limit.left_s <= 0:
            raise self._out_of_time()
        sent = metrics.requests_ok + metrics.requests_failed
        if not metrics.requests_ok or metrics.requests_failed > self.task.benchmark.max_error_rate * sent:
            raise TrialFailed(_request_failure(result, metrics))
        if any(objective.value(metrics) is None for objective in self.task.objectives):
            detail = "no answer has more than one token, so there is no time per output token (TPOT)"
            raise TrialFailed(Failure(Stage.LOAD, Cause.REQUEST_ERRORS, detail))

    def _await_exit(self) -> None:
        limit = time.monotonic() + _EXIT_SEEN_S
        while self.server.alive() and time.monotonic() < limit:
            time.sleep(0.05)

    def _out_of_time(self) -> TrialFailed:
        limit_s = self.task.optimization.timeout_per_iteration
        detail = f"not finished within timeout_per_iteration ({limit_s:g} s)"
        return TrialFailed(Failure(Stage.LOAD, Cause.TRIAL_TIMEOUT, detail))


def _request_failure(result: LoadResult, metrics: Metrics) -> Failure:
    """In words: `5 of 9 requests failed (4 http status 503, 1 timeout)`."""
    sent = metrics.requests_ok + metrics.requests_failed
    counts = Counter(
        f"{record.error} {record.status}" if record.error is RequestError.HTTP else str(record.error)
        for record in result.records
        if record.error is not None
    )
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    hung = metrics.errors.get(RequestError.TIMEOUT, 0) > sent / 2
    said = f"; the server says: {result.said}" if result.said else ""
    detail = f"{metrics.requests_failed} of {sent} requests failed ({kinds}){said}"
    return Failure(Stage.LOAD, Cause.HANG if hung else Cause.REQUEST_ERRORS, detail)
