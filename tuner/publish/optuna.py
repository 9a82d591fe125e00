"""A study in an Optuna storage, as `optuna-dashboard` opens it.

A trial's value is its score in the objective's own direction and unit. Repeats are no trials of their own:
the luckiest of them would be Optuna's best. They stand in the study's attributes, with the answer.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from tuner.analysis import Status, status, summary
from tuner.analysis.trials import Trial, at_levels, default_of, is_true, objectives_of, rows, slo_terms
from tuner.errors import ResultsError, StudyError, UsageError
from tuner.objective import Objective
from tuner.publish import Published
from tuner.results import StudyResults
from tuner.secrets import redacted
from tuner.space import Domain, Float, Integer
from tuner.task import make_task

_STATES = {
    Status.FINISHED: TrialState.COMPLETE,
    Status.HARD_SLO: TrialState.COMPLETE,  # and no feasible one, see `_constraints`
    Status.STOPPED: TrialState.PRUNED,
    Status.FAILED: TrialState.FAIL,
}
_DIRECTIONS = {True: StudyDirection.MAXIMIZE, False: StudyDirection.MINIMIZE}
_MARK = "tuner_trial"
_TOLD = (
    *(
        "kind",
        "gpus",
        "gpu_model",
        "node",
        "engine",
        "engine_version",
        "simulated",
        "objective",
        "objective_unit",
    ),
    *("slo_met", "slo_worst", "slo_worst_violation"),
    *("failure_stage", "failure_cause", "failure_detail", "max_load", "start_s", "duration_s"),
)


def publish(results: StudyResults, storage: str) -> Published:
    """Adds what `storage` (a URL as Optuna takes it) lacks of the study; its study has the same name.

    UsageError for what is no URL, ResultsError where the storage cannot be used, StudyError where another
    study has the name there, or the space is another than it was.
    """
    place = redacted(storage, {})
    directions = [_DIRECTIONS[each.maximise] for each in objectives_of(results)]
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=storage, study_name=results.about["study"], directions=directions, load_if_exists=True
        )
        added = _added(results, study, directions, place)
        return Published(place, added, len(study.get_trials(deepcopy=False)))
    except ArgumentError as error:
        raise UsageError(f"--optuna: {place} is no storage: {redacted(str(error), {})}") from error
    except (SQLAlchemyError, OSError, ImportError, StorageInternalError, RuntimeError) as error:
        raise ResultsError(f"cannot write to {place}: {redacted(str(error), {}).splitlines()[0]}") from error
    except ValueError as error:
        why = redacted(str(error), {})
        raise StudyError(f"{place} does not take {results.about['study']}: {why}") from error
    finally:
        optuna.logging.set_verbosity(verbosity)


def _added(results: StudyResults, study: optuna.Study, directions: list[StudyDirection], place: str) -> int:
    there = study.get_trials(deepcopy=False)
    marks = {trial.user_attrs.get(_MARK) for trial in there}
    if None in marks or study.directions != directions:
        raise StudyError(f"{place} has another study called {study.study_name}")
    new = [trial for trial in _trials(results) if trial.user_attrs[_MARK] not in marks]
    for trial in new:
        study.add_trial(trial)
    for name, value in _answer(results).items():
        study.set_user_attr(name, value)
    if not study.metric_names:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            study.set_metric_names([each.name for each in objectives_of(results)])
    return len(new)


def _trials(results: StudyResults) -> Iterator[FrozenTrial]:
    """The study's trials but its repeats; the baseline only where the space holds the engine's defaults."""
    domains = make_task(results.about["task"], f"{results.about['study']}/study.json").space.domains
    objectives = objectives_of(results)
    has_hard_promises = any(term.hard_fail for term in slo_terms(results))
    for row in rows(results.trials):
        config = _defaults(domains, row) if row["kind"] == "baseline" else row["config"]
        if row["kind"] == "confirm" or config is None:
            continue
        params = {name: value for name, value in config.items() if name in domains}
        params = {name: value for name, value in params.items() if domains[name].contains(value)}
        values, state = _values(row, objectives), _STATES[status(row)]
        if values is None and state is not TrialState.FAIL:
            continue  # not one of ours: what was measured has a score
        found = create_trial(
            state=state,
            values=values if state is not TrialState.FAIL else None,
            params=params,
            distributions={name: distribution(domains[name]) for name in params},
            user_attrs=_attributes(row),
            intermediate_values=_levels(results, row) if len(objectives) == 1 else {},
            constraints={"hard SLOs": float(is_true(row["slo_hard_failed"]))} if has_hard_promises else None,
        )
        began = row["started_at"]
        if isinstance(began, datetime) and pd.notna(began) and pd.notna(row["duration_s"]):
            local = pd.Timestamp(began).to_pydatetime().astimezone().replace(tzinfo=None)
            found.datetime_start = local
            found.datetime_complete = local + timedelta(seconds=float(row["duration_s"]))
        yield found


def distribution(domain: Domain) -> BaseDistribution:
    """A parameter as Optuna knows it. Lists are choices, ordered or not."""
    if isinstance(domain, Integer):
        step = 1 if domain.log else domain.step
        high = domain.low + (domain.high - domain.low) // step * step
        return IntDistribution(domain.low, high, log=domain.log, step=step)
    if isinstance(domain, Float):
        if domain.log or domain.step is None:
            return FloatDistribution(domain.low, domain.high, log=domain.log)
        width = domain.steps * Decimal(str(domain.step))  # as Optuna divides the range
        return FloatDistribution(domain.low, float(Decimal(str(domain.low)) + width), step=domain.step)
    values = domain.values()
    assert values is not None  # what is no range is a list
    return CategoricalDistribution(values)


def _defaults(domains: Mapping[str, Domain], baseline: Trial) -> dict[str, Any] | None:
    """The engine's own values of all parameters; None where it did not say, or the space lacks one."""
    found = {name: default_of(name, baseline) for name in domains}
    if all(value is not None and domains[name].contains(value[0]) for name, value in found.items()):
        return {name: value[0] for name, value in found.items() if value is not None}
    return None


def _values(row: Trial, objectives: list[Objective]) -> list[float] | None:
    """The scores; None where one is no number."""
    several = row["objectives"]
    told = [several.get(each.name, {}).get("score") for each in objectives] if several else [row["score"]]
    values = [float(value) for value in told if isinstance(value, int | float) and math.isfinite(value)]
    return values if len(values) == len(objectives) else None


def _attributes(row: Trial) -> dict[str, Any]:
    told = {name: _plain(row[name]) for name in _TOLD}
    known = {name: value for name, value in told.items() if value is not None}
    return {_MARK: int(row["trial"]), "config": json.dumps(row["config"]), **known}


def _plain(value: Any) -> Any:
    """A cell as JSON has it; None for a null."""
    if not isinstance(value, str) and pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _levels(results: StudyResults, row: Trial) -> dict[int, float]:
    """The objective at each load level, counted from 1."""
    return {step + 1: value for step, value in at_levels(results, row).items()}


def _answer(results: StudyResults) -> dict[str, Any]:
    """What the study found, as the report says it."""
    answer, about = summary(results), results.about
    best, baseline, gain = answer.best, answer.baseline, answer.gain
    repeats = [
        {"config": row["config"], "score": _plain(row["score"])}
        for row in rows(results.trials)
        if row["kind"] == "confirm"
    ]
    return {
        "engine": about.get("engine"),
        "engine_version": about.get("engine_version"),
        "simulated": bool(about.get("simulated")),
        "task": json.dumps(about["task"]),
        "verdict": f"{answer.verdict}: {answer.reason}",
        "best_trial": None if best is None else int(best["trial"]),
        "best_config": None if best is None else json.dumps(best["config"]),
        "gain_percent": None if gain is None else 100 * gain.share,
        "baseline_score": None if baseline is None else _plain(baseline["score"]),
        "repeats": json.dumps(repeats),
    }
