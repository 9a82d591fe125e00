"""How trials ended, and which of them can be compared.

Only trials that *finished* are compared. One that was stopped early lacks its higher load levels, so
its mean reads better than it is; one that failed, or that broke a promise for which `hard_fail` was
asked, is never the best.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from tuner.errors import ResultsError
from tuner.objective import OBJECTIVES, Objective, SloTerm
from tuner.results import StudyResults
from tuner.task.slo import SloSpec

Trial = Mapping[str, Any]  # one row of the trials table
REQUEST_COLUMNS = {"ttft": "ttft_s", "tpot": "tpot_s", "latency": "e2e_s"}  # of a request, by latency
_RATE_COLUMNS = {
    "maximize_throughput": "total_tok_s_per_gpu",
    "maximize_output_throughput": "output_tok_s_per_gpu",
    "maximize_goodput": "goodput",
}
_TELLING = ["failure_cause", "slo_hard_failed", "stopped_early", "score", "loss", "objectives"]


class Status(StrEnum):
    """How a trial ended."""

    FINISHED = "finished"
    STOPPED = "stopped early"
    HARD_SLO = "hard SLO failure"
    FAILED = "failed"


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The frame's rows as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def status(trial: Trial) -> Status:
    """How a trial ended, derived from its row."""
    if isinstance(trial["failure_cause"], str):
        return Status.FAILED
    if is_true(trial["slo_hard_failed"]):
        return Status.HARD_SLO
    return Status.STOPPED if is_true(trial["stopped_early"]) else Status.FINISHED


def outcome(trial: Trial) -> str:
    """The status in words, with the cause of a failure: `failed: out of memory`."""
    ended = status(trial)
    return f"{ended}: {trial['failure_cause']}" if ended is Status.FAILED else str(ended)


def busy_s(trials: pd.DataFrame) -> float:
    """Seconds in which at least one trial ran: a study that goes on has lain idle before."""
    begun = trials[trials["started_at"].notna() & trials["duration_s"].between(0, 1e9)]
    starts = begun["started_at"].map(lambda at: at.timestamp())
    busy, until = 0.0, -math.inf
    for start, length in sorted(zip(starts, begun["duration_s"], strict=True)):
        busy += max(0.0, start + length - max(start, until))
        until = max(until, start + length)
    return busy


def is_true(value: Any) -> bool:
    """Whether a nullable boolean is true; null is not."""
    return bool(pd.notna(value) and value)


def without_repeats(results: StudyResults) -> StudyResults:
    """The study as it was before the best were measured again."""
    return replace(results, trials=results.trials[results.trials["kind"] != "confirm"])


def finished(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials that can be compared."""
    return _ended(trials, Status.FINISHED)


def measured(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials whose load levels were all measured, hard SLO failures among them."""
    return _ended(trials, Status.FINISHED, Status.HARD_SLO)


def _ended(trials: pd.DataFrame, *wanted: Status) -> pd.DataFrame:
    told = rows(trials[_TELLING])  # the other sixty columns would take most of the time
    kept = [status(trial) in wanted and is_scored(trial) for trial in told]
    return trials[np.array(kept, dtype=bool)]


def is_scored(trial: Trial) -> bool:
    """Whether the row has the numbers of a trial that was measured; one that others wrote may lack them."""
    each = [trial, *trial["objectives"].values()]
    return all(
        isinstance(found, Mapping) and is_number(found.get(name)) and math.isfinite(found[name])
        for found in each
        for name in ("score", "loss")
    )


def objectives_of(results: StudyResults) -> list[Objective]:
    """The study's objectives, the first being the one that gains are told in."""
    optimization = results.about["task"].get("optimization") or {}
    named = optimization.get("objective", "minimize_latency")
    try:
        found = [OBJECTIVES[name] for name in ([named] if isinstance(named, str) else named)]
    except (KeyError, TypeError) as error:
        raise ResultsError(f"the study's task has the objective {named!r}, which none is") from error
    return found or [OBJECTIVES["minimize_latency"]]


def objective_of(results: StudyResults) -> Objective:
    """The study's objective; of several, the first."""
    return objectives_of(results)[0]


def at_levels(results: StudyResults, trial: Trial) -> dict[int, float]:
    """The objective at each of a trial's load levels, by its step; of several objectives, the first."""
    objective = objective_of(results)
    column = _RATE_COLUMNS.get(objective.name, f"{objective.steered_by[0]}_mean_s")
    steps = results.steps[results.steps["trial"] == trial["trial"]].dropna(subset=[column])
    gpus = max(trial["gpus"], 1) if objective.counts_promises else 1
    return {int(step): float(value) / gpus for step, value in zip(steps["step"], steps[column], strict=True)}


def losses_of(trial: Trial) -> list[float]:
    """A trial's losses, one for each of several objectives."""
    return [float(each["loss"]) for each in trial["objectives"].values()] or [float(trial["loss"])]


def command_of(trial: Trial) -> list[str]:
    """The argv that serves the trial's configuration; empty where the row has none, not being one of ours."""
    try:
        words = json.loads(trial["command"])
    except (TypeError, ValueError, RecursionError):
        return []
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else []


def slo_terms(results: StudyResults) -> tuple[SloTerm, ...]:
    """The study's promises; empty where none were asked for."""
    try:
        return SloSpec.model_validate(results.about["task"].get("slo") or {}).terms().terms
    except ValueError as error:
        raise ResultsError(f"the study's task has SLOs that are none: {error}") from error


def parameters_of(trials: pd.DataFrame) -> list[str]:
    """The parameters that the trials set, in the order in which they first appear."""
    return list(dict.fromkeys(name for config in trials["config"] for name in config))


def default_of(flag: str, baseline: Trial | None) -> tuple[Any] | None:
    """The engine's own value of `flag`, as the baseline's server told it; None where it did not."""
    told = baseline["effective_args"] if baseline is not None else {}
    return next(((told[name],) for name in (flag, flag.replace("-", "_")) if name in told), None)


def overrides(config: Mapping[str, Any], baseline: Trial | None) -> int:
    """How many flags differ from the engine's own defaults, or may do so."""
    return sum(default_of(flag, baseline) != (value,) for flag, value in config.items())


def is_number(value: Any) -> bool:
    """Whether `value` is a number and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def natural_order(values: Iterable[Any]) -> list[Any]:
    """The distinct values: numbers ascending, then everything else by name."""
    distinct = {(type(value).__name__, value): value for value in values}.values()
    return sorted(distinct, key=lambda v: (not is_number(v), v if is_number(v) else 0.0, str(v)))
