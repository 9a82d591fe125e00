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
from tuner.engines.base import Config, Engine, ServerInfo
from tuner.engines.gpus import GpuUse
from tuner.failures import Cause, Failure, Stage, TrialFailed
from tuner.levels import Levels, levels_of
from tuner.load.base import Glance, LoadGenerator
from tuner.measure import Limit, Probe, Step
from tuner.metrics import Metrics, summarise
from tuner.objective import Score, Slo, score
from tuner.secrets import known, plain
from tuner.task import Task
from tuner.workload import LoadLevel

_NOTHING = Failure(Stage.CHECK, Cause.INTERNAL, "nothing was measured")
LEAST_REQUESTS = 20  # that have ended, before a load level that goes on is judged
_MOST_TOKENS = 2**53  # of a KV cache; what says more says nothing
_VERSION_CHARACTERS = 200


@dataclass(frozen=True)
class Report:
    """What is known of a trial so far.

    `step` is the load level that was finished last (None where a failure came instead, or the last load of
    a search was refused). `score` is of all finished levels, or of those that were looked for, whose loads
    are `max_loads` by scenario; `others` are for the further objectives where there are several. `done` says
    that no further report follows. `part` is the share that is done of a load level that goes on: such a
    report has no `step`, and its `score` counts what was seen of that level so far. `gpus` is what was on the
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
    max_loads: Mapping[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """How much of the trial's load is done, to six digits, as it is read from disk again."""
        return round((self.finished + self.part) / self.planned, 6)


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
    clock: Callable[[], float] = time.monotonic,
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
        library = gpus.nvml() if gpu_ids and not engine.simulated else None
        with gpus.clean(gpu_ids, library) as before:
            report = replace(report, gpus=before)
            with engine.launch(config, gpu_ids=gpu_ids, log_path=log_path, timeout_s=start_limit_s) as server:
                report = replace(report, info=_shown(server.info, environment), start_s=server.start_s)
                per = engine.gpus(config) or 1  # rates per GPU are the whole server's where it has none
                probe = Probe(task, server, load, per, limit, gpu_ids, library)
                level = levels.next()
                while level is not None:
                    step = yield from _step(report, probe, level, levels, glances=glances)
                    level = levels.next()
                    so_far, *others = scores(task, levels.judged)
                    report = replace(
                        report,
                        finished=report.finished + (step is not None),
                        score=so_far,
                        others=tuple(others),
                        step=step,
                        max_loads=levels.max_loads,
                    )
                    if level is not None and step is not None:
                        yield report
        yield replace(report, planned=report.finished, done=True)  # the engine has left its GPUs
    except TrialFailed as failed:
        progress = report.finished / levels.most
        failure = _blamed(replace(_quotable(failed.failure, environment), progress=progress), report.gpus)
        worst, *others = scores(task, levels.judged, failure)
        ended = replace(report, done=True, step=None, failure=failure, max_loads={})
        yield replace(ended, score=worst, others=tuple(others))


def _step(
    report: Report, probe: Probe, level: LoadLevel, levels: Levels, *, glances: bool
) -> Generator[Report, None, Step | None]:
    """Measures `level` and tells `levels`; None where it is an answer that the server refuses that much."""
    try:
        step = (yield from _glancing(report, probe, level)) if glances else probe.measure(level)
    except TrialFailed as failed:
        if failed.failure.cause is not Cause.REQUEST_ERRORS or not levels.may_be_refused:
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


def _glancing(report: Report, probe: Probe, level: LoadLevel) -> Generator[Report, None, Step]:
    """Measures with a report for each glance; the load goes on meanwhile, and ends when this is closed."""
    seen: SimpleQueue[Glance | None] = SimpleQueue()
    left = Event()

    def run() -> Step:
        try:
            return probe.measure(level, seen=seen.put, left=left.is_set)
        finally:
            seen.put(None)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            while (glance := seen.get()) is not None:
                so_far = _glanced(report, probe, glance)
                if so_far is not None:
                    yield replace(report, step=None, part=glance.share, score=so_far)
        finally:
            left.set()
    return running.result()


def _glanced(report: Report, probe: Probe, glance: Glance) -> Score | None:
    """The score with what was seen of a load level; None where that tells too little.

    The level's mean counts, its promises do not yet: percentiles of few requests would tell nothing.
    """
    objective = probe.task.objective
    value = objective.value(summarise(glance.records, window_s=glance.window_s, gpus=probe.gpus))
    if len(glance.records) < LEAST_REQUESTS or not value:
        return None
    before = report.score.objective or value
    mean = (report.finished * before + value) / (report.finished + 1)
    if not report.finished:
        verdict = Slo(()).judge([])
        return Score(mean, mean, -math.log(mean) if objective.maximise else math.log(mean), verdict)
    change = math.log(mean / before)
    loss = report.score.loss + (-change if objective.maximise else change)
    return replace(report.score, objective=mean, loss=loss)


def scores(task: Task, metrics: Sequence[Metrics], failure: Failure | None = None) -> list[Score]:
    """The score for each of the task's objectives."""
    return [score(objective, task.slo_terms, metrics, failure) for objective in task.objectives]
