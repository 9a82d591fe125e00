"""`tuner check`: what a task would cost and every problem in it, as lines of text."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tuner.capacity import gpu_range
from tuner.engines import make_engine
from tuner.engines.base import Engine
from tuner.engines.simulator.models import ModelNotFound, find_model
from tuner.errors import EngineUnavailable, Problem, TaskError, told_of
from tuner.failures import TrialFailed
from tuner.plan import (
    FINALISTS,
    advise,
    advise_as_measured,
    allowed_size,
    planned_repeats,
    planned_trials,
    sampler_of,
    trial_guess_s,
)
from tuner.report.words import duration, engine_text, seconds
from tuner.secrets import reference
from tuner.space import SearchSpace, Value
from tuner.task import Task, load_task
from tuner.task.model import DEFAULT_PARAMETERS

_LEAST_OF_A_STREAM = 4  # requests
_MACHINE = 8  # GPUs that many have
_MOST_CHECKED = 2000  # configurations that are put to the engine's own check


def check_task(path: Path, engine_name: str | None = None) -> Iterator[str]:
    """Lines on the task at `path`; TaskError, or EngineUnavailable after them, where it cannot be run."""
    task = load_task(path)
    with told_of(str(path)):
        engine = make_engine(task, engine_name)
    if engine.simulated:
        _require_known(task, str(path))
    version, missing = _version(engine)
    every = ", ".join(f"{objective.meaning} ({objective.name})" for objective in task.objectives)
    yield f"Task        {task.task_name}: {every}"
    yield f"Engine      {engine_text(engine.name, version)}, model {task.model.id_or_path}"
    yield f"Space       {_space_text(task)}"
    if task.parameters == DEFAULT_PARAMETERS and "parameters" not in task.model_fields_set:
        yield "            (no parameters are given; these are the documented four of SGLang)"
    yield from _load_and_promises(task)
    yield from _idle_constraints(task)
    yield from _unset_variables(task)
    if missing is None:
        yield from _refused(task, engine, str(path))
    yield from _cost(task, engine)
    if missing is not None:
        raise missing


def _require_known(task: Task, source: str) -> None:
    try:
        find_model(task.model.id_or_path)
    except ModelNotFound as unknown:
        why = f"the simulator does not know the model {unknown}"
        hint = "a folder with its config.json would do"
        raise TaskError(source, [Problem("model.id_or_path", why, hint)]) from unknown


def _version(engine: Engine) -> tuple[str | None, EngineUnavailable | None]:
    try:
        return engine.version(), None
    except EngineUnavailable as missing:
        return None, missing


def _cost(task: Task, engine: Engine) -> Iterator[str]:
    options, trials, advice = task.optimization, planned_trials(task), advise(task)
    fewest, most = gpu_range(task.space, engine)
    repeats = planned_repeats(options.confirm, FINALISTS, baseline=options.baseline)
    yield f"Strategy    {options.strategy}, {trials} trials" + (f" and {repeats} repeats" if repeats else "")
    if not options.enumerates:
        sampler = sampler_of(task)
        yield f"Sampler     {sampler.name}: {sampler.reason}"
    if len(task.objectives) == 1:  # of several, none was measured
        measured = advise_as_measured(task)
        yield f"Advised     {measured.strategy}, {measured.trials} trials: {measured.reason} (docs/search.md)"
    yield f"Usual       {advice.strategy}, {advice.trials} trials: {advice.reason} (a rule of thumb)"
    yield f"GPUs        {fewest if fewest == most else f'{fewest} to {most}'} for a trial"
    guess_s, every = trial_guess_s(task, engine.name), trials + repeats
    times = f"{duration(every * guess_s)} one after another"
    at_once = _MACHINE / _mean_gpus(task, engine) if fewest else 1.0
    if at_once > 1:
        times += f", {duration(every * guess_s / at_once)} if {_MACHINE} GPUs are kept busy"
    yield f"Time        about {duration(guess_s)} a trial where load levels use up their time: {times}"


def _mean_gpus(task: Task, engine: Engine) -> float:
    counts = [engine.gpus(config) for config in _some_of(task.space)] or [1]
    return sum(counts) / len(counts)


def _space_text(task: Task) -> str:
    size = allowed_size(task)
    factors = " x ".join(
        f"{name} ({'any' if math.isinf(domain.size()) else int(domain.size())})"
        for name, domain in task.space.domains.items()
    )
    count = "continuous" if math.isinf(size) else f"{int(size):,} configuration{'s' * (size != 1)}"
    return f"{count}: {factors}"


def _load_and_promises(task: Task) -> Iterator[str]:
    """What a trial is put through, with what makes its figures worthless, and what it is to keep."""
    load, levels = task.benchmark, task.levels(0)
    found = ", ".join(f"{value:g}" for value in load.loads)
    at = f"{found} at a time" if load.request_rate is None else f"{found} requests/s"
    search = "the highest within the SLOs of " if load.find else ""
    yield f"Load        {search}{', '.join(load.traffic_scenarios)} at {at}"
    short = [
        level.concurrency
        for level in levels
        if level.request_rate is None and level.max_requests < _LEAST_OF_A_STREAM * level.concurrency
    ]
    if short:
        few = f"fewer than {_LEAST_OF_A_STREAM} requests a stream at {min(short)} at a time and more"
        yield f"            {few}: raise or leave out benchmark.max_requests_per_iteration"
    sending_s, limit_s = len(levels) * load.max_time_per_iteration, task.optimization.timeout_per_iteration
    if not load.find and sending_s > limit_s:
        longer = f"levels may send for {duration(sending_s)}, and a trial is ended after {duration(limit_s)}"
        yield f"            {longer}: raise optimization.timeout_per_iteration"
    for term in task.slo_terms.terms:
        hard = " (hard)" if term.hard_fail else ""
        yield f"SLO         {term.name} at most {seconds(term.threshold_s).amount(term.threshold_s)}{hard}"


def _idle_constraints(task: Task) -> Iterator[str]:
    """Constraints that forbid nothing: a slip, where they were not left from a wider space."""
    for number, constraint in enumerate(task.space.constraints):
        for name, condition in constraint.when.items():
            if not condition.possible(task.space.domains[name]):
                where = f"constraints[{number}] never applies"
                yield f"Constraint  {where}: no value of {name} is as its `when` says"


def _unset_variables(task: Task) -> Iterator[str]:
    """References of engine.env to what is not set here; a study is perhaps started elsewhere."""
    for name, value in task.engine.env.items():
        if (variable := reference(value)) and variable not in os.environ:
            why = f"engine.env.{name} needs it where the study is started"
            yield f"Variable    {variable} is not set here: {why}"


def _refused(task: Task, engine: Engine, source: str) -> Iterator[str]:
    """What the engine's own check says of the configurations, all or some; TaskError if of every one."""
    reasons: Counter[str] = Counter()
    configs = list(_some_of(task.space))
    for config in configs:
        try:
            engine.check(config)
        except TrialFailed as refused:
            reasons[refused.failure.detail] += 1
    if configs and reasons.total() == len(configs):
        why = "; ".join(reason for reason, _ in reasons.most_common(5))
        raise TaskError(source, [Problem("parameters", f"{engine.name} refuses every configuration: {why}")])
    for reason, count in reasons.most_common():
        yield f"Refused     {count} of {len(configs)} looked at, by {engine.name}: {reason}"


def _some_of(space: SearchSpace) -> Iterator[dict[str, Value]]:
    """Every configuration of a small space, or as many drawn ones."""
    if space.size <= _MOST_CHECKED and space.enumerable():
        yield from space.grid()
        return
    chance = Random(0)  # noqa: S311  the same sample each time
    for _ in range(_MOST_CHECKED // 10):
        config = {name: domain.draw(chance.random()) for name, domain in space.domains.items()}
        if space.allows(config):
            yield config
