"""What the simulator predicts of a configuration: a task's load in virtual time, without a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuner.engines.simulator.adapter import SimulatorEngine
from tuner.engines.simulator.memory import StartFailure
from tuner.engines.simulator.models import ModelNotFound
from tuner.engines.simulator.virtual import build, closed_loop
from tuner.failures import Cause, Failure, Stage
from tuner.metrics import Metrics, RequestRecord, summarise
from tuner.objective import Score, score
from tuner.prompts import prompts
from tuner.task import Task

Config = Mapping[str, Any]


def predict(task: Task, config: Config, seed: int) -> Score:
    """The score of `config` on `task`, in some tenths of a second; a failed one where it would not start."""
    engine = SimulatorEngine(task)
    metrics: list[Metrics] = []
    failure = None
    for level in task.levels(seed):
        try:
            _, _, scheduler = build(engine.arguments(config, "127.0.0.1", 1))
        except (ModelNotFound, StartFailure, SystemExit) as refused:
            failure = Failure(Stage.START, Cause.CRASH, str(refused))
            break
        requests = ((tuple(prompt.text.split()), prompt.output_tokens) for prompt in prompts(level))
        loop = closed_loop(scheduler, requests, level.concurrency)
        records = [
            RequestRecord(0.0, one.ttft_s, one.e2e_s, one.prompt_tokens, one.output_tokens)
            for one in loop.served
        ]
        metrics.append(summarise(records, window_s=loop.duration_s, gpus=engine.gpus(config)))
    return score(task.objective, task.slo_terms, metrics, failure)
