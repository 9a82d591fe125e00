"""`tuner check`: what a task would cost and every problem in it, as lines of text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tuner.engines import make_engine
from tuner.engines.base import Engine
from tuner.failures import TrialFailed
from tuner.plan import advise, planned_trials, trial_limit_s
from tuner.report.words import duration, engine_text
from tuner.task import Task, load_task
from tuner.task.model import DEFAULT_PARAMETERS

_MOST_CHECKED = 2000  # configurations that are put to the engine's own check


def check_task(path: Path, engine_name: str | None = None) -> Iterator[str]:
    """Lines on the task at `path`; TaskError or EngineUnavailable where it cannot be run."""
    task = load_task(path)
    engine = make_engine(task, engine_name)
    yield f"Task        {task.task_name}: {task.objective.meaning} ({task.objective.name})"
    yield f"Engine      {engine_text(engine.name, engine.version())}, model {task.model.id_or_path}"
    yield f"Space       {_space_text(task)}"
    if task.parameters == DEFAULT_PARAMETERS and "parameters" not in task.model_fields_set:
        yield "            (no parameters are given; these are the documents' own four)"
    yield from _refused(task, engine)
    advice = advise(task)
    options = task.optimization
    yield f"Strategy    {options.strategy}, {planned_trials(task)} trials"
    yield f"Advised     {advice.strategy}, {advice.trials} trials: {advice.reason}"
    fewest, most = task.gpu_range(engine.gpus)
    yield (
        f"GPUs        {fewest} for a trial"
        if fewest == most
        else f"GPUs        {fewest} to {most} for a trial"
    )
    limit_s = trial_limit_s(task, engine.name)
    total_s = planned_trials(task) * limit_s
    yield (
        f"Time        at most {duration(limit_s)} a trial: {duration(total_s)} one after another, "
        f"{duration(total_s / max(1, 8 // fewest))} on 8 GPUs"
    )


def _space_text(task: Task) -> str:
    size = task.space.size
    factors = " x ".join(
        f"{name} ({'any' if math.isinf(domain.size()) else int(domain.size())})"
        for name, domain in task.space.domains.items()
    )
    return f"{'continuous' if math.isinf(size) else f'{int(size):,} configurations'}: {factors}"


def _refused(task: Task, engine: Engine) -> Iterator[str]:
    """What the engine's own check says of the configurations, where they can be listed."""
    if task.space.size > _MOST_CHECKED or not task.space.enumerable():
        return
    reasons: Counter[str] = Counter()
    for config in task.space.grid():
        try:
            engine.check(config)
        except TrialFailed as refused:
            reasons[refused.failure.detail] += 1
    for reason, count in reasons.most_common():
        yield f"Refused     {count} of them by {engine.name}: {reason}"
