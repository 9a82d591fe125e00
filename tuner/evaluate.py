"""One configuration in, a stream of reports out: launch the engine, put every load level on it, score.

Knows nothing of Ray: the same generator serves a Tune trial and `tuner trial` in the foreground.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event

from tuner.engines import gpus
from tuner.engines.base import Config, Engine, RunningEngine, ServerInfo
from tuner.engines.gpus import GpuUse
from tuner.engines.telemetry import EngineFigures, watched
from tuner.failures import Cause, Failure, Stage, TrialFailed
from tuner.levels import Levels, levels_of
from tuner.load.base import Glance, LoadGenerator, LoadResult, Target
from tuner.load.limit import client_limit
from tuner.metrics import Metrics, RequestError, summarise
from tuner.objective import Score, Slo, score
from tuner.secrets import known, plain
from tuner.task import Task
from tuner.workload import LoadLevel

_NOTHING = Failure(Stage.CHECK, Cause.INTERNAL, "nothing was measured")
LEAST_REQUESTS = 20  # that have ended, before a load level that goes on is judged
_MOST_TOKENS = 2**53  # of a KV cache; what says more says nothing
_VERSION_CHARACTERS = 200
_EXIT_SEEN_S = 2.0  # a broken connection is noticed before the exit code of the process behind it


Clock = Callable[[], float]


@dataclass(frozen=True)
class Limit:
    """When a trial has to be over, by a clock of its own."""

    clock: Clock
    at_s: float

    @property
    def left_s(self) -> float:
        return self.at_s - self.clock()


@dataclass(frozen=True)
class Step:
    """One finished load level."""

    level: LoadLevel
    load: LoadResult
    metrics: Metrics
    engine: EngineFigures = field(default_factory=EngineFigures)

    @property
    def client_limit(self) -> str | None:
        """In what way the load client was the limit, not the engine; None where it was not."""
        return client_limit(self.load, self.metrics)


@dataclass(frozen=True)
class Report:
    """What is known of a trial so far.

    `step` is the load level that was finished last (None where a failure came instead, or the last load of
    a search was refused). `score` is of all finished levels, or of the one that was looked for, whose load
    is `max_load`; `others` are for the further objectives where there are several. `done` says that no
    further report follows. `part` is the share that is done of a load level that goes on: such a report
    has no `step`, and its `score` counts what was seen of that level so far. `gpus` is what was on the
    trial's GPUs before it (empty where they are logical, or no NVML is there).
    """

    planned: int
    finished: int
    score: Score
    done: bool
    others: tuple[Score, ...] = ()
    step: Step | None = None
    failure: Failure | None = None
    part: float = 0.0
    gpus: tuple[GpuUse, ...] = ()
    info: ServerInfo = field(default_factory=lambda: ServerInfo(version=""))
    start_s: float | None = None
    max_load: float | None = None

    @property
    def share(self) -> float:
        """How much of the trial's load is done."""
        return (self.finished + self.part) / self.planned


def evaluate(
    task: Task,
    config: Config,
    *,
    engine: Engine,
    load: LoadGenerator,
    seed: int,
    gpu_ids: Sequence[str],
    log_path: Path,
    glances: bool = False,
    clock: Clock = time.monotonic,
) -> Iterator[Report]:
    """Yields a report after every load level; the last one has `done`, with or without a failure.

    With `glances` there are reports within load levels too, once enough requests have ended. The engine
    lives exactly as long as the generator needs it: closing the generator ends it. `clock` counts the
    seconds of the trial's time limit.
    """
    limit = Limit(clock, clock() + task.optimization.timeout_per_iteration)
    levels, environment = levels_of(task, seed), known(task.engine.env, os.environ)
    report = Report(levels.most, 0, scores(task, [], _NOTHING)[0], done=False)
    try:
        engine.check(config)
        start_limit_s = min(task.engine.start_timeout, task.optimization.timeout_per_iteration)
        with gpus.clean(gpu_ids, gpus.nvml() if gpu_ids and not engine.simulated else None) as before:
            report = replace(report, gpus=before)
            with engine.launch(config, gpu_ids=gpu_ids, log_path=log_path, timeout_s=start_limit_s) as server:
                report = replace(report, info=_shown(server.info, environment), start_s=server.start_s)
                per = engine.gpus(config) or 1  # rates per GPU are the whole server's where it has none
                level = levels.next()
                while level is not None:
                    step = yield from _step(
                        report,
                        task,
                        level,
                        levels,
                        server,
                        load,
                        gpus=per,
                        limit=limit,
                        glances=glances,
                    )
                    level = levels.next()
                    so_far, *others = scores(task, levels.judged)
                    report = replace(
                        report,
                        finished=report.finished + (step is not None),
                        score=so_far,
                        others=tuple(others),
                        step=step,
                        max_load=levels.max_load,
                    )
                    if level is not None and step is not None:
                        yield report
        yield replace(report, planned=report.finished, done=True)  # the engine has left its GPUs
    except TrialFailed as failed:
        progress = min(report.finished / levels.most, 1.0)
        failure = _blamed(replace(_quotable(failed.failure, environment), progress=progress), report.gpus)
        worst, *others = scores(task, levels.judged, failure)
        ended = replace(report, done=True, step=None, failure=failure, max_load=None)
        yield replace(ended, score=worst, others=tuple(others))


def _step(
    report: Report,
    task: Task,
    level: LoadLevel,
    levels: Levels,
    server: RunningEngine,
    load: LoadGenerator,
    *,
    gpus: int,
    limit: Limit,
    glances: bool,
) -> Generator[Report, None, Step | None]:
    """Measures `level` and tells `levels`; None where it is an answer that the server refuses that much."""
    try:
        step = yield from _measured(
            report, task, level, server, load, gpus=gpus, limit=limit, glances=glances
        )
    except TrialFailed as failed:
        refused = failed.failure.cause is Cause.REQUEST_ERRORS and levels.searches
        if not (refused and levels.judged):
            raise
        levels.saw(None)
        return None
    levels.saw(step.metrics)
    return step


def _quotable(failure: Failure, environment: Mapping[str, str]) -> Failure:
    """What an engine wrote, as it can be kept and shown."""
    detail, evidence = (plain(text, environment) for text in (failure.detail, failure.evidence))
    return replace(failure, detail=detail, evidence=evidence)


def _shown(info: ServerInfo, environment: Mapping[str, str]) -> ServerInfo:
    """The same for what a server says of itself."""
    args = {
        plain(flag, environment): plain(value, environment) if isinstance(value, str) else value
        for flag, value in info.effective_args.items()
    }
    known_tokens = info.kv_tokens is not None and 0 < info.kv_tokens < _MOST_TOKENS
    kv_tokens = info.kv_tokens if known_tokens else None
    return ServerInfo(plain(info.version, environment)[:_VERSION_CHARACTERS], kv_tokens, args)


def _blamed(failure: Failure, before: Sequence[GpuUse]) -> Failure:
    """A lack of memory is not the configuration's fault where others were on its GPUs before."""
    crowded = [use for use in before if use.crowded]
    if failure.cause is not Cause.OUT_OF_MEMORY or not crowded:
        return failure
    others = "; ".join(
        f"GPU {use.gpu}: {use.used_bytes / 2**30:.1f} GiB in use"
        + "".join(f", {name} (pid {pid})" for pid, name in use.processes)
        for use in crowded
    )
    return replace(failure, cause=Cause.GPU_IN_USE, detail=f"{others}; {failure.detail}")


def _measured(
    report: Report,
    task: Task,
    level: LoadLevel,
    server: RunningEngine,
    load: LoadGenerator,
    *,
    gpus: int,
    limit: Limit,
    glances: bool,
) -> Generator[Report, None, Step]:
    """`measure` with a report for each glance; the load goes on meanwhile, and ends when this is closed."""
    if not glances:
        return measure(task, level, server, load, gpus=gpus, limit=limit)
    seen: SimpleQueue[Glance | None] = SimpleQueue()
    left = Event()

    def run() -> Step:
        try:
            return measure(task, level, server, load, gpus=gpus, limit=limit, seen=seen.put, left=left.is_set)
        finally:
            seen.put(None)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            while (glance := seen.get()) is not None:
                so_far = _glanced(task, report, glance, gpus)
                if so_far is not None:
                    yield replace(report, step=None, part=glance.share, score=so_far)
        finally:
            left.set()
    return running.result()


def _glanced(task: Task, report: Report, glance: Glance, gpus: int) -> Score | None:
    """The score with what was seen of a load level; None where that tells too little.

    The level's mean counts, its promises do not yet: percentiles of few requests would tell nothing.
    """
    value = task.objective.value(summarise(glance.records, window_s=glance.window_s, gpus=gpus))
    if len(glance.records) < LEAST_REQUESTS or not value:
        return None
    before = report.score.objective or value
    mean = (report.finished * before + value) / (report.finished + 1)
    if not report.finished:
        verdict = Slo(()).judge([])
        return Score(mean, mean, -math.log(mean) if task.objective.maximise else math.log(mean), verdict)
    change = math.log(mean / before)
    loss = report.score.loss + (-change if task.objective.maximise else change)
    return replace(report.score, objective=mean, loss=loss)


def scores(task: Task, metrics: Sequence[Metrics], failure: Failure | None = None) -> list[Score]:
    """The score for each of the task's objectives."""
    return [score(objective, task.slo_terms, metrics, failure) for objective in task.objectives]


def measure(
    task: Task,
    level: LoadLevel,
    server: RunningEngine,
    load: LoadGenerator,
    *,
    gpus: int,
    limit: Limit,
    seen: Callable[[Glance], None] | None = None,
    left: Callable[[], bool] = lambda: False,
) -> Step:
    """One load level, on a clean cache unless it is to stay warm; TrialFailed where it cannot be believed.

    It ends as soon as `left` says that nobody waits for it any more.
    """
    if not task.benchmark.keep_cache:
        server.flush_cache()
    params, tokenizer = task.benchmark.additional_params, task.benchmark.model_tokenizer
    target = Target(server.base_url, server.model, params, tokenizer or task.model.id_or_path)
    if (remaining_s := limit.left_s) <= 0:
        raise _out_of_time(task)
    stall_s = task.engine.hang_timeout
    with watched(server.base_url) as telemetry:
        result = load.run(
            target,
            level,
            healthy=lambda: server.alive() and not left(),
            timeout_s=remaining_s,
            stall_s=stall_s,
            seen=seen,
        )
    metrics = summarise(
        result.records,
        window_s=result.window_s,
        gpus=gpus,
        warmup=result.warmup,
        gaps_s=result.gaps_s,
        promises=task.slo_terms.of_each_request,
    )
    if RequestError.CONNECTION in metrics.errors:
        _await_exit(server)
    server.raise_if_failed()
    if result.stalled:
        detail = f"served nothing for {stall_s:g} s (engine.hang_timeout) with requests in flight"
        raise TrialFailed(Failure(Stage.LOAD, Cause.HANG, detail))
    sent = metrics.requests_ok + metrics.requests_failed
    if not metrics.requests_ok or metrics.requests_failed > task.benchmark.max_error_rate * sent:
        if limit.left_s <= 0:
            raise _out_of_time(task)
        raise TrialFailed(_request_failure(metrics))
    kept = replace(result, warmup=(), gaps_s=())  # all that is wanted of these is known
    return Step(level, kept, metrics, telemetry.figures)


def _await_exit(server: RunningEngine) -> None:
    limit = time.monotonic() + _EXIT_SEEN_S
    while server.alive() and time.monotonic() < limit:
        time.sleep(0.05)


def _out_of_time(task: Task) -> TrialFailed:
    detail = f"not finished within timeout_per_iteration ({task.optimization.timeout_per_iteration:g} s)"
    return TrialFailed(Failure(Stage.LOAD, Cause.TRIAL_TIMEOUT, detail))


def _request_failure(metrics: Metrics) -> Failure:
    sent = metrics.requests_ok + metrics.requests_failed
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(metrics.errors.items()))
    hung = metrics.errors.get(RequestError.TIMEOUT, 0) > sent / 2
    detail = f"{metrics.requests_failed} of {sent} requests failed ({kinds})"
    return Failure(Stage.LOAD, Cause.HANG if hung else Cause.REQUEST_ERRORS, detail)
