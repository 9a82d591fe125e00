"""What is known of a space before a study: earlier studies of it, and the simulator's prediction.

Where model, engine, load, promises and GPUs were the same, an earlier trial is as good as one of the study
itself. Where not, it says which configurations are good, if not how good: a prior.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pandas as pd

from tuner.analysis import objective_of
from tuner.capacity import gpu_range
from tuner.engines import gpus
from tuner.engines.base import Engine
from tuner.engines.simulator.gpus import gpu_of
from tuner.errors import StudyError, UsageError
from tuner.failures import OF_THE_CLUSTER
from tuner.objective import HARD_SLO_TIER
from tuner.predict import predict
from tuner.results import ResultStore, StudyResults
from tuner.rig import calibrated, with_args
from tuner.space import SearchSpace, Value, config_key
from tuner.task import Task, make_task

_DRAWN = 100  # times as many are drawn at the most, where constraints leave few
MOST_PREDICTED = 300  # configurations; each takes the simulator some hundredths of a second

Known = list[tuple[dict[str, Value], float]]  # configurations with their losses


@dataclass(frozen=True)
class Experience:
    """`data` was measured under the same conditions; each of `priors` under others, or was predicted."""

    data: Known
    priors: list[Known]


NOTHING = Experience([], [])


def experience(
    task: Task,
    engine: Engine,
    *,
    warm_start: Iterable[str],
    simulate: bool,
    root: str | Path,
    seed: int,
    calibration: str | Path | None = None,
) -> Experience:
    """What the studies `warm_start` in `root`, and with `simulate` the simulator, know of the task's space.

    A real engine's GPUs are simulated where the simulator knows them; `calibration` is a file of `tuner
    calibrate` for it. UsageError where there is no such study, or it had another objective or knows no
    configuration of the space.
    """
    data: Known = []
    priors: list[Known] = []
    own = _conditions(task, engine.name, engine.simulated, _own_gpus(task, engine))
    for name in warm_start:
        try:
            results = ResultStore(root, name).read()
        except StudyError as error:
            raise StudyError(f"--warm-start: {error}") from error
        known = _known(task, results)
        if own == _conditions_of(results):
            data += known
        else:
            priors.append(_averaged(known))
    if simulate:
        priors.append(_predicted(_as_simulated(task, engine, calibration), seed))
    return Experience(_averaged(data), priors)


def _averaged(known: Known) -> Known:
    """Each configuration once: the mean of its runs, or the failure where one of them failed."""
    configs = {config_key(config): config for config, _ in known}
    losses: dict[str, list[float]] = {key: [] for key in configs}
    for config, loss in known:
        losses[config_key(config)].append(loss)
    worst = {key: max(runs) for key, runs in losses.items()}
    means = {key: worst[key] if worst[key] >= HARD_SLO_TIER / 2 else fmean(losses[key]) for key in configs}
    return [(configs[key], mean) for key, mean in means.items()]


def _known(task: Task, results: StudyResults) -> Known:
    study = results.about["study"]
    theirs = objective_of(results).name
    if theirs != task.objective.name:
        raise UsageError(
            f"--warm-start: study {study} was of {theirs}, this task is of {task.objective.name}"
        )
    trials = results.trials
    taught = (trials["kind"] != "baseline") & ~trials["failure_cause"].isin(OF_THE_CLUSTER)
    taught &= ~trials["stopped_early"].fillna(value=False).astype(bool)
    known = [
        (dict(config), float(loss))
        for config, loss in zip(trials["config"][taught], trials["loss"][taught], strict=True)
        if task.space.contains(config)
    ]
    if not known:
        raise UsageError(f"--warm-start: study {study} has measured no configuration of this task's space")
    return known


def _conditions(task: Task, engine: str, simulated: bool, gpu_models: set[str]) -> tuple[Any, ...]:
    load = task.benchmark.model_dump(exclude={"model_name", "model_tokenizer"})
    return (
        *(engine, simulated, task.model.id_or_path, sorted(gpu_models)),
        *(json.dumps(part, sort_keys=True) for part in (load, task.engine.args, task.slo.model_dump())),
    )


def _conditions_of(results: StudyResults) -> tuple[Any, ...]:
    about, models = results.about, results.trials["gpu_model"].dropna()
    task, simulated = make_task(about["task"], str(about["study"])), bool(about.get("simulated"))
    models_of = set() if simulated else set(pd.unique(models))
    return _conditions(task, str(about.get("engine", "")), simulated, models_of)


def _own_gpus(task: Task, engine: Engine) -> set[str]:
    """The models of this machine's GPUs; none for an engine that uses none of them."""
    _, most = gpu_range(task.space, engine)
    return set() if engine.simulated or not most else {use.model for use in gpus.all_gpus()}


def _as_simulated(task: Task, engine: Engine, calibration: str | Path | None) -> Task:
    """`task` on the GPU that its engine has here, if that is known; with what was calibrated."""
    known = {gpu_of(model) for model in _own_gpus(task, engine)} - {None}
    if len(known) == 1 and "gpu" not in task.engine.args:
        task = with_args(task, {**task.engine.args, "gpu": known.pop()})
    return task if calibration is None else calibrated(task, calibration)


def _predicted(task: Task, seed: int) -> Known:
    """The simulator's losses of the whole space, or of as many configurations as it does in some seconds."""
    return [(config, predict(task, config, seed).score.loss) for config in some_of(task.space, seed)]


def some_of(space: SearchSpace, seed: int) -> list[dict[str, Value]]:
    """All configurations of `space`, or MOST_PREDICTED of them; UsageError where chance finds none."""
    chance = Random(seed)  # noqa: S311  a reproducible draw, no secret
    if space.enumerable():
        configs = list(space.grid())
        chance.shuffle(configs)
        return configs[:MOST_PREDICTED]
    drawn = (
        {name: domain.draw(chance.random()) for name, domain in space.domains.items()}
        for _ in range(_DRAWN * MOST_PREDICTED)
    )
    found = list(islice(filter(space.allows, drawn), MOST_PREDICTED))
    if not found:
        raise UsageError(f"constraints: they allow none of {_DRAWN * MOST_PREDICTED} configurations drawn")
    return found
