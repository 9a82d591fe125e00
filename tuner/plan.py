"""What a task will cost and which strategy suits it, before anything is run: the documents' rules."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuner.levels import levels_of
from tuner.task import Task

# Until `sampler: gp` is within 2 % of the best, in half and in nine tenths of the searches on eleven
# measured surfaces of 60 to 495 configurations (benchmarks/search_quality.py).
GP_TRIALS_MEDIAN, GP_TRIALS = 8, 16
MOST_FOR_GP = 300  # trials: a fit grows with their third power
FINALISTS = 2  # configurations that are measured again at a study's end
_START_GUESS_S = {
    "simulator": 1.0,
    "llamacpp": 1.0,
}  # of an engine; others load weights and capture CUDA graphs
_START_S = 60.0
_AROUND_A_LEVEL = 1.4  # warm-up before and drain after, relative to the time of sending; seen: 1.3 to 1.6
_MOST_COUNTED = 100_000  # configurations that constraints are tried on, one by one


@dataclass(frozen=True)
class Advice:
    """The strategy and number of trials that the documents advise for a space, and why."""

    strategy: str
    trials: int
    reason: str


def advise(task: Task) -> Advice:
    """Under 20 combinations: grid; 20-50: 20-30 trials; 50-200: 30-50; over 200: 50-100."""
    size = allowed_size(task)
    if len(task.parameters) == 1 and math.isinf(size):
        return Advice("random", 20, "one continuous parameter gives a model little to learn")
    if size < 20:
        return Advice("grid_search", int(size), f"{int(size)} combinations are few enough to try them all")
    if size <= 50:
        return Advice("bayesian", min(30, max(20, round(size * 0.5))), "20-30 trials for 20-50 combinations")
    if size <= 200:
        return Advice(
            "bayesian", min(50, max(30, round(size * 0.25))), "30-50 trials for 50-200 combinations"
        )
    trials = 100 if math.isinf(size) else min(100, max(50, round(size * 0.25)))
    return Advice("bayesian", trials, "50-100 trials for more than 200 combinations")


def advise_as_measured(task: Task) -> Advice:
    """What our own measurements advise (docs/search.md): as many trials as nine searches of ten need."""
    size = allowed_size(task)
    if size <= GP_TRIALS:
        return Advice("grid_search", int(size), f"a search needs {GP_TRIALS} to be sure to 90 %")
    reason = (
        f"gp came within 2 % of the best in {GP_TRIALS_MEDIAN} trials at the median, {GP_TRIALS} in 9 of 10"
    )
    return Advice("bayesian", GP_TRIALS, reason)


@dataclass(frozen=True)
class Sampler:
    """The sampler that a task's search uses, and why."""

    name: str
    reason: str


def sampler_of(task: Task) -> Sampler:
    """What the task names, or what `auto` takes: the sampler that measures best for the space at hand."""
    options = task.optimization
    if options.strategy == "random":
        return Sampler("random", "the strategy is random")
    if options.sampler != "auto":
        return Sampler(options.sampler, "the task asks for it")
    if len(options.objectives) > 1:
        return Sampler("tpe", "it searches for a Pareto front, a Gaussian process here for one objective")
    if planned_trials(task) > MOST_FOR_GP:
        return Sampler("tpe", f"a Gaussian process grows slow beyond {MOST_FOR_GP} trials")
    return Sampler("gp", "it needs about half of TPE's trials on measured surfaces")


def planned_trials(task: Task, elsewhere: int = 0) -> int:
    """The trials that a search may run, the baseline included: a grid's all, unless it sets a limit.

    Those that a study tried `elsewhere`, before its space was changed, leave all of the space to try.
    """
    options = task.optimization
    whole = allowed_size(task) + options.baseline + elsewhere
    if options.enumerates and "max_iterations" not in options.model_fields_set:
        return int(whole)
    return int(min(options.max_iterations, whole))


def planned_repeats(rounds: int, candidates: int, *, baseline: bool) -> int:
    """The repeats of so many rounds: in each of them of the best candidates, and once of the baseline."""
    return rounds * (min(FINALISTS, candidates) + baseline) if candidates else 0


def allowed_size(task: Task) -> float:
    """How many configurations the constraints leave; all of them where they are too many to count."""
    size = task.space.size
    if not task.constraints or size > _MOST_COUNTED or not task.space.enumerable():
        return size
    return sum(1 for _ in task.space.grid())


def trial_guess_s(task: Task, engine: str) -> float:
    """Seconds of one trial whose load levels all use up their time: engine start (guessed), load, drain."""
    load = task.benchmark
    levels = levels_of(task, 0).most if load.find else len(load.traffic_scenarios) * len(load.loads)
    seconds = _START_GUESS_S.get(engine, _START_S) + levels * (_AROUND_A_LEVEL * load.max_time_per_iteration)
    return min(seconds, task.optimization.timeout_per_iteration)
