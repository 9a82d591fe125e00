"""What the simulator predicts of configurations: a trial in virtual time, from check to score.

Knows nothing of how predictions are shown, or of what a search makes of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tuner.engines.base import Config
from tuner.engines.simulator.flags import effect_of
from tuner.engines.simulator.gpus import GPUS
from tuner.engines.simulator.models import ModelNotFound, find_model
from tuner.errors import UsageError
from tuner.evaluate import evaluate
from tuner.objective import FAILED_TIER, Score
from tuner.rig import rig, with_args
from tuner.task import Task

_NO_NOISE = {"noise": 0}  # unless the task asks for some


@dataclass(frozen=True)
class Prediction:
    """One configuration and the score predicted for it; `failure` says why it would not run, else empty.

    `others` are the scores for the further objectives where there are several.
    """

    config: Config
    score: Score
    failure: str = ""
    others: tuple[Score, ...] = ()

    @property
    def scores(self) -> tuple[Score, ...]:
        """One for each of the task's objectives."""
        return (self.score, *self.others)

    @property
    def starts(self) -> bool:
        """Whether the simulator served it at all."""
        return self.score.objective is not None and self.score.loss < FAILED_TIER


def predict(task: Task, config: Config, seed: int) -> Prediction:
    """What `config` would come to on `task`, in some tenths of a second."""
    task = with_args(task, {**_NO_NOISE, **task.engine.args})
    measured_by = rig(task, "simulator", virtual=True)
    *_, last = evaluate(
        task,
        config,
        engine=measured_by.engine,
        load=measured_by.load,
        clock=measured_by.clock,
        seed=seed,
        gpu_ids=[],
        log_path=Path(os.devnull),
    )
    return Prediction(config, last.score, "" if last.failure is None else last.failure.detail, last.others)


def predict_all(task: Task, configs: Iterable[Config], seed: int) -> list[Prediction]:
    """The predictions for `configs`, best first by the first objective.

    Flags that the simulator does not know are left out; UsageError where it is the model or the GPU.
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
    known = with_args(task, {flag: v for flag, v in task.engine.args.items() if flag not in unknown})
    found = []
    for config in configs:
        kept = {flag: value for flag, value in config.items() if flag not in unknown}
        found.append(replace(predict(known, kept, seed), config=config))
    return sorted(found, key=lambda one: one.score.loss)
