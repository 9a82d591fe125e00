"""What the repeats at a study's end say: which configuration is best, and by how much it beats the defaults.

The best of many single measurements is partly lucky; repeats that were made afterwards are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from tuner.analysis.front import from_the_knee
from tuner.analysis.trials import (
    Status,
    Trial,
    finished,
    is_scored,
    losses_of,
    objective_of,
    objectives_of,
    outcome,
    overrides,
    rows,
    status,
    without_repeats,
)
from tuner.failures import INFRASTRUCTURE
from tuner.plan import planned_repeats
from tuner.results import StudyResults
from tuner.space import config_key
from tuner.task.optimization import Optimization

EQUAL = 0.01  # share of the score within which configurations are equals: a start differs by 0.5 to 1.1 %
# Where a gain that may be chance is measured on (see `tuner.search.repeats`), its interval is looked at after
# each repeat: one that holds at twenty looks to 95 % is one of 99.25 % at each (Pocock 1977, table 1), and
# a little is left for the choice among several.
SURE_AT_EACH_LOOK = 0.995


@dataclass(frozen=True)
class Confirmation:
    """The configuration that the repeats favour, and the baseline, as rows that hold their means.

    `rounds` is how often the best was measured again, `baseline_rounds` how often the baseline; `margin` the
    half width of the confidence interval of log(best objective / baseline objective), None where it cannot
    be told.
    """

    best: Trial
    baseline: Trial | None
    rounds: int
    baseline_rounds: int
    margin: float | None


def confirmation(results: StudyResults, confidence: float) -> Confirmation | None:
    """The verdict of the repeats; None where nothing was repeated to its end, or all of it failed then.

    The interval is Student's, with the variance of log(objective) between repeats pooled over all
    configurations that were repeated. The baseline's first run counts as a repeat: it was not picked for
    its result. Where more was measured than the planned rounds, the interval is wider: that more was needed
    was told by what had been seen.
    """
    first = {config_key(trial["config"]): trial for trial in _kind(results, "baseline", "search")}
    repeats: dict[str, list[Trial]] = {}
    for trial in _kind(results, "confirm"):
        repeats.setdefault(config_key(trial["config"]), []).append(trial)
    kept = {key: [each for each in trials if not _lost(each)] for key, trials in repeats.items()}
    whole = {
        key: trials for key, trials in kept.items() if key in first and trials and all(map(_counts, trials))
    }
    defaults = config_key({})
    if not whole.keys() - {defaults}:
        return None
    groups = dict(whole)
    if defaults in groups and _counts(first[defaults]):
        groups[defaults] = [first[defaults], *whole[defaults]]
    best = _favoured(results, groups, first)
    if _measured_on(results, repeats):
        confidence = max(confidence, SURE_AT_EACH_LOOK)
    known = best != defaults and defaults in groups
    return Confirmation(
        best=_averaged(results, first[best], groups[best]),
        baseline=_averaged(results, first[defaults], groups[defaults]) if defaults in groups else None,
        rounds=len(whole[best]),
        baseline_rounds=len(whole.get(defaults, ())),
        margin=_margin(groups, best, defaults, confidence) if known else None,
    )


def promised(results: StudyResults, trial: Trial) -> Trial:
    """The row of a first run, with the means of its repeats where it has any: it may have been lucky."""
    key = config_key(trial["config"])
    again = [each for each in _kind(results, "confirm") if config_key(each["config"]) == key]
    runs: list[Trial] = list(filter(_counts, again))
    if runs and key == config_key({}) and _counts(trial):
        runs.append(trial)  # it was not picked for its result
    return _averaged(results, trial, runs) if runs else trial


def failed_again(results: StudyResults) -> dict[str, str]:
    """How each configuration ended, by its key, that finished and failed when it was measured again.

    One that was lost to infrastructure did not fail.
    """
    sound = {
        config_key(trial["config"])
        for trial in _kind(results, "baseline", "search")
        if status(trial) is Status.FINISHED
    }
    again = [(config_key(trial["config"]), trial) for trial in _kind(results, "confirm") if not _lost(trial)]
    ends = (Status.FAILED, Status.HARD_SLO)
    return {key: outcome(trial) for key, trial in again if key in sound and status(trial) in ends}


def one_more(results: StudyResults, config: Mapping[str, Any], confidence: float) -> float | None:
    """By how much log(objective) of one more run of `config` may lie off the mean of those there are.

    The half width of Student's prediction interval; the variance is pooled over all configurations that were
    measured more than once. None where none was.
    """
    runs: dict[str, list[Trial]] = {}
    for trial in filter(_counts, _kind(results, "baseline", "confirm")):
        runs.setdefault(config_key(trial["config"]), []).append(trial)
    noise = deviation(list(runs.values()))
    if noise is None:
        return None
    of_it = len(runs.get(config_key(config), ())) or 1
    return float(stdtrit(noise[1], (1 + confidence) / 2)) * noise[0] * math.sqrt(1 + 1 / of_it)


def _favoured(results: StudyResults, groups: Mapping[str, list[Trial]], first: Mapping[str, Trial]) -> str:
    """The key of the lowest mean loss of all runs; among those `EQUAL` to it, of the fewest overrides.

    Which of them it is, their first runs help to tell; that it is better than the baseline, only what was
    measured afterwards does, for it was picked for its first run. Else the baseline stands, where nothing is
    better by more than equals differ. Of several objectives, the knee of the front, be it the baseline.
    """
    defaults = config_key({})
    others = [key for key in groups if key != defaults]
    if len(objectives_of(results)) > 1:
        failed = failed_again(results)
        held = [key for key in first if status(first[key]) is Status.FINISHED and key not in failed]
        ranked = from_the_knee([losses_of(first[key]) for key in held])
        return next((held[place] for place in ranked if held[place] in groups), others[0])
    means = {key: _mean_loss([*filter(_counts, [first[key]]), *groups[key]]) for key in others}
    equal = [key for key, mean in means.items() if mean <= min(means.values()) + math.log1p(EQUAL)]
    baseline = first.get(defaults)
    best = min(equal, key=lambda key: (overrides(first[key]["config"], baseline), means[key]))
    bound = _mean_loss(groups[defaults]) - math.log1p(EQUAL) if defaults in groups else math.inf
    return best if _mean_loss(groups[best]) < bound else defaults


def _mean_loss(trials: Sequence[Trial]) -> float:
    return float(np.mean([trial["loss"] for trial in trials]))


def _measured_on(results: StudyResults, repeats: Mapping[str, Sequence[Trial]]) -> bool:
    """Whether there are more repeats than a study has rounds for."""
    asked = (results.about["task"].get("optimization") or {}).get("confirm")
    rounds = asked if isinstance(asked, int) else Optimization().confirm
    planned = planned_repeats(rounds, _candidates(results), baseline=config_key({}) in repeats)
    return sum(map(len, repeats.values())) > planned


def _candidates(results: StudyResults) -> int:
    """How many configurations there were to repeat: what beat the baseline, or stands on the front."""
    first = rows(finished(without_repeats(results).trials))
    if len(objectives_of(results)) > 1:
        first = [first[place] for place in from_the_knee([losses_of(trial) for trial in first])]
        return sum(trial["kind"] != "baseline" for trial in first)
    bound = min((trial["loss"] for trial in first if trial["kind"] == "baseline"), default=math.inf)
    return sum(trial["loss"] < bound for trial in first)


def _counts(trial: Trial) -> bool:
    return status(trial) is Status.FINISHED and is_scored(trial) and 0 < trial["objective"] < math.inf


def _lost(trial: Trial) -> bool:
    """Whether a machine was at fault that it did not finish."""
    return trial["failure_cause"] in INFRASTRUCTURE


def _kind(results: StudyResults, *kinds: str) -> list[dict[str, Any]]:
    return rows(results.trials[results.trials["kind"].isin(kinds)])


def _averaged(results: StudyResults, first: Trial, repeats: list[Trial]) -> Trial:
    """The first run's row with the means of its repeats; geometric where values are ratios."""
    sign = -1.0 if objective_of(results).maximise else 1.0
    loss = _mean_loss(repeats)
    worst = max(repeats, key=lambda trial: -math.inf if _null(trial) else trial["slo_worst_violation"])
    return {
        **first,
        "objective": math.exp(float(np.mean(_logs(repeats)))),
        "score": math.exp(sign * loss),
        "loss": loss,
        **{name: worst[name] for name in ("slo_met", "slo_worst", "slo_worst_violation")},
    }


def _null(trial: Trial) -> bool:
    violation = trial["slo_worst_violation"]
    return violation is None or math.isnan(violation)


def _logs(trials: Sequence[Trial]) -> list[float]:
    return [math.log(trial["objective"]) for trial in trials]


def _margin(groups: Mapping[str, list[Trial]], one: str, two: str, confidence: float) -> float | None:
    noise = deviation(list(groups.values()))
    return None if noise is None else half_width(noise, len(groups[one]), len(groups[two]), confidence)


def deviation(every: Sequence[Sequence[Trial]]) -> tuple[float, int] | None:
    """The `pooled` standard deviation of log(objective) between runs of one configuration."""
    return pooled([_logs(runs) for runs in every])


def pooled(groups: Iterable[Sequence[float]]) -> tuple[float, int] | None:
    """The standard deviation within `groups`, with its degrees of freedom; None where none has two values."""
    every = [np.array(own) for own in groups if len(own)]
    freedom = sum(len(own) - 1 for own in every)
    squares = sum(float(((own - own.mean()) ** 2).sum()) for own in every)
    return (math.sqrt(squares / freedom), freedom) if freedom > 0 else None


def half_width(noise: tuple[float, int], one: int, two: int, confidence: float) -> float:
    """Of Student's interval of the difference of two means, of `one` and `two` values; `noise` as pooled."""
    quantile = float(stdtrit(noise[1], (1 + confidence) / 2))
    return quantile * noise[0] * math.sqrt(1 / one + 1 / two)


def runs_of(results: StudyResults) -> dict[str, list[Trial]]:
    """By configuration, its finished runs: the first, then those that repeat it."""
    found: dict[str, list[Trial]] = {}
    for trial in rows(results.trials):
        if _counts(trial):
            found.setdefault(config_key(trial["config"]), []).append(trial)
    return found
