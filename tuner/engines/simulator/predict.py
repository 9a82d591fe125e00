"""What the simulator predicts of a configuration: a task's load in virtual time, without a server."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from tuner.engines.simulator.adapter import SimulatorEngine
from tuner.engines.simulator.memory import StartFailure
from tuner.engines.simulator.models import ModelNotFound
from tuner.engines.simulator.scheduler import Scheduler
from tuner.engines.simulator.virtual import ClosedLoop, build, closed_loop
from tuner.failures import Cause, Failure, Stage
from tuner.metrics import Metrics, RequestRecord, summarise
from tuner.objective import Score, score
from tuner.prompts import prompts
from tuner.task import Task
from tuner.workload import LoadLevel

Config = Mapping[str, Any]
_ALONE = 8  # requests, one after the other, that tell how long one is open


def predict(task: Task, config: Config, seed: int) -> Score:
    """The score of `config` on `task`, in some tenths of a second; a failed one where it would not start.

    A load at a rate is taken for a closed loop of as many streams as that rate keeps open (Little's law).
    """
    engine = SimulatorEngine(task)
    metrics: list[Metrics] = []
    failure = None
    for level in task.levels(seed):
        try:
            loop = _served(engine, config, level)
        except (ModelNotFound, StartFailure, SystemExit) as refused:
            failure = Failure(Stage.START, Cause.CRASH, str(refused))
            break
        records = [
            RequestRecord(0.0, one.ttft_s, one.e2e_s, one.prompt_tokens, one.output_tokens)
            for one in loop.served
        ]
        promises = task.slo_terms.of_each_request
        gpus = engine.gpus(config)
        metrics.append(summarise(records, window_s=loop.duration_s, gpus=gpus, promises=promises))
    return score(task.objective, task.slo_terms, metrics, failure)


def _served(engine: SimulatorEngine, config: Config, level: LoadLevel) -> ClosedLoop:
    streams = level.concurrency
    if level.request_rate is not None:
        alone = closed_loop(_scheduler(engine, config), islice(_requests(level), _ALONE), 1).served
        mean_s = sum(one.e2e_s for one in alone) / len(alone)
        streams = min(streams, max(1, math.ceil(level.request_rate * mean_s)))
    return closed_loop(_scheduler(engine, config), _requests(level), streams)


def _requests(level: LoadLevel) -> Iterator[tuple[tuple[str, ...], int]]:
    return ((tuple(prompt.text.split()), prompt.output_tokens) for prompt in prompts(level))


def _scheduler(engine: SimulatorEngine, config: Config) -> Scheduler:
    _, _, scheduler = build(engine.arguments(config, "127.0.0.1", 1))
    return scheduler
