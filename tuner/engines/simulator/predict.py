"""What the simulator predicts of configurations: a task's load in virtual time, without a server."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tuner.engines.simulator.adapter import SimulatorEngine
from tuner.engines.simulator.flags import effect_of
from tuner.engines.simulator.gpus import GPUS
from tuner.engines.simulator.memory import StartFailure
from tuner.engines.simulator.models import ModelNotFound, find_model
from tuner.engines.simulator.scheduler import Scheduler
from tuner.engines.simulator.virtual import ClosedLoop, build, closed_loop
from tuner.errors import UsageError
from tuner.failures import Cause, Failure, Stage
from tuner.levels import levels_of
from tuner.metrics import RequestRecord, summarise
from tuner.objective import FAILED_TIER, Score, score
from tuner.prompts import prompts
from tuner.task import Task
from tuner.workload import LoadLevel

Config = Mapping[str, Any]
_ALONE = 8  # requests, one after the other, that tell how long one is open


def predict(task: Task, config: Config, seed: int) -> Score:
    """The score of `config` on `task`, in some tenths of a second; a failed one where it would not start.

    A load at a rate is taken for a closed loop of as many streams as that rate keeps open (Little's law).
    """
    engine, levels = SimulatorEngine(task), levels_of(task, seed)
    failure = None
    while (level := levels.next()) is not None:
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
        levels.saw(summarise(records, window_s=loop.duration_s, gpus=gpus, promises=promises))
    return score(task.objective, task.slo_terms, levels.judged, failure)


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


@dataclass(frozen=True)
class Prediction:
    """One configuration and the score predicted for it."""

    config: Config
    score: Score

    @property
    def starts(self) -> bool:
        """Whether the simulator served it at all."""
        return self.score.objective is not None and self.score.loss < FAILED_TIER


def predict_all(task: Task, configs: Iterable[Config], seed: int) -> list[Prediction]:
    """The predictions for `configs`, best first; flags that the simulator does not know are left out.

    UsageError where it does not know the model or the GPU.
    """
    try:
        find_model(task.model.id_or_path)
    except ModelNotFound as unknown_model:
        raise UsageError(
            f"the simulator does not know the model {unknown_model}; a folder with its config.json would do"
        ) from unknown_model
    if (gpu := task.engine.args.get("gpu", "h100")) not in GPUS:
        raise UsageError(f"the simulator does not know the GPU {gpu}, only {', '.join(sorted(GPUS))}")
    unknown = {flag for flag in (*task.engine.args, *task.space.domains) if effect_of(flag) is None}
    args = {flag: value for flag, value in task.engine.args.items() if flag not in unknown}
    task = task.model_copy(update={"engine": task.engine.model_copy(update={"args": args})})
    found = []
    for config in configs:
        known = {flag: value for flag, value in config.items() if flag not in unknown}
        with contextlib.redirect_stderr(io.StringIO()):  # where argparse refuses a value
            found.append(Prediction(config, predict(task, known, seed)))
    return sorted(found, key=lambda one: one.score.loss)
