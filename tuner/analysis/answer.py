"""The answer of a study: the best trial, what it bought over the engine's defaults, and how sure that is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from tuner.analysis.confirmation import Confirmation, confirmation, failed_again
from tuner.analysis.front import from_the_knee
from tuner.analysis.trials import (
    REQUEST_COLUMNS,
    Status,
    Trial,
    finished,
    is_true,
    losses_of,
    measured,
    objective_of,
    objectives_of,
    outcome,
    rows,
    slo_terms,
    status,
    without_repeats,
)
from tuner.objective import Objective, SloTerm
from tuner.results import StudyResults
from tuner.space import config_key

RESAMPLES = 2_000  # of the bootstrap
CONFIDENCE = 0.95  # that no gain is called one, over all trials together
STARTS_CV = 0.01  # of one start to the next, where no repeats tell: 0.5-1.1 % was measured
STARTS_DIFFER = 2 * STARTS_CV  # by what one start may differ from the next
SMALLEST_GAIN = 0.01  # below this share a gain without an interval is called none


class Verdict(StrEnum):
    """What tuning bought over the engine's defaults."""

    BETTER = "better"
    NO_GAIN = "no significant gain"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Gain:
    """Share by which the best improves on the baseline, with its interval (None: cannot be told).

    Where both were measured again, in `rounds` and `baseline_rounds`, the interval is from those. Otherwise
    it covers the spread between requests, and that the best was chosen among many, but not what differs from
    one start of the engine to the next.
    """

    share: float
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    baseline_rounds: int = 0


@dataclass(frozen=True)
class SloStatus:
    """How the promises fared among the finished (and hard-failed) trials.

    `nearest` is the trial with the smallest worst violation, `held_back_by` that promise
    (`latency p90`) and `violation` its (actual − threshold)/threshold.
    """

    terms: tuple[SloTerm, ...]
    met: int
    judged: int
    nearest: int | None = None
    held_back_by: str = ""
    violation: float = 0.0


@dataclass(frozen=True)
class Summary:
    """The answer of a study; `reason` is a sentence for the verdict, and one for each that is out.

    `front` is the Pareto front of several objectives, from its knee on, which is the best; empty for one.
    `out` are the trials that finished, of configurations that failed when they were measured again.
    """

    objective: Objective
    best: Trial | None
    baseline: Trial | None
    gain: Gain | None
    verdict: Verdict
    reason: str
    slo: SloStatus | None
    outcomes: Mapping[str, int]
    front: Sequence[Trial] = ()
    out: frozenset[int] = frozenset()

    @property
    def defaults_are_best(self) -> bool:
        """Whether nothing beat the engine's defaults."""
        return self.best is not None and self.best["kind"] == "baseline"

    @property
    def exit_code(self) -> int:
        """With which a command ends: 3 where no trial met the SLOs, 4 where none finished, else 0."""
        if self.slo is not None and self.slo.judged and not self.slo.met:
            return 3
        return 4 if self.best is None else 0


def summary(results: StudyResults) -> Summary:
    """The best trial and what it bought over the baseline.

    The best is the one that the repeats at the study's end favour; without repeats, the lowest loss of
    those that finished. Of several objectives it is the knee of the front. One that failed when it was
    measured again is none.
    """
    objective = objective_of(results)
    again, failed = confirmation(results, CONFIDENCE), failed_again(results)
    results = without_repeats(results)
    every = [(config_key(trial["config"]), trial) for trial in rows(finished(results.trials))]
    comparable = [trial for key, trial in every if key not in failed]
    out = {int(trial["trial"]): failed[key] for key, trial in every if key in failed}
    front = [comparable[place] for place in from_the_knee([losses_of(trial) for trial in comparable])]
    best: Trial | None = front[0] if front else None
    found = rows(results.trials)
    baseline: Trial | None = next((trial for trial in found if trial["kind"] == "baseline"), None)
    gain = None
    if again is not None:
        best, baseline = again.best, again.baseline or baseline
        gain = _confirmed_gain(objective, again)
    elif best is not None and baseline is not None and _has_value(baseline, out):
        gain = None if _from_nothing(best, baseline) else _gain(results, objective, best, baseline)
    verdict, reason = _verdict(best, baseline, gain, out)
    if best is None and not out and len(measured(results.trials)):
        reason = "Every trial that was measured broke an SLO that must hold (hard_fail)."
    return Summary(
        objective=objective,
        best=best,
        baseline=baseline,
        gain=gain,
        verdict=verdict,
        reason=" ".join([reason, *_told(out, baseline)]),
        slo=_slo_status(results),
        outcomes=Counter(outcome(trial) for trial in rows(results.trials)),
        front=front if len(objectives_of(results)) > 1 else (),
        out=frozenset(out),
    )


def _has_value(baseline: Trial, out: Mapping[int, str]) -> bool:
    """Whether a gain over the baseline can be told."""
    return baseline["trial"] not in out and status(baseline) in (Status.FINISHED, Status.HARD_SLO)


def _from_nothing(best: Trial, baseline: Trial) -> bool:
    """Whether the defaults' goodput is zero and the best's is not: such a gain has no share."""
    return float(baseline["objective"]) == 0.0 < float(best["objective"])


def _told(out: Mapping[int, str], baseline: Trial | None) -> list[str]:
    """A sentence for each trial but the baseline that is `out`."""
    searched = [number for number in out if baseline is None or number != baseline["trial"]]
    return [f"Trial {number} is out: measured again, it ended as “{out[number]}”." for number in searched]


def _verdict(
    best: Trial | None, baseline: Trial | None, gain: Gain | None, out: Mapping[int, str]
) -> tuple[Verdict, str]:
    if best is None:
        return Verdict.UNKNOWN, "Nothing held when it was measured again." if out else "No trial finished."
    if baseline is None:
        return Verdict.UNKNOWN, "The engine's defaults were not measured, so the gain is unknown."
    if gain is None:
        return _without_share(best, baseline, out)
    if best["kind"] == "baseline":
        return Verdict.NO_GAIN, _why_defaults(best, gain, out)
    if is_true(best["slo_met"]) and not is_true(baseline["slo_met"]):
        return Verdict.BETTER, "It meets the SLOs, which the engine's defaults violate."
    return _judged(gain)


def _without_share(best: Trial, baseline: Trial, out: Mapping[int, str]) -> tuple[Verdict, str]:
    if baseline["trial"] not in out and _from_nothing(best, baseline):
        return Verdict.BETTER, "The engine's defaults served no request within the SLOs."
    ended = out.get(baseline["trial"], outcome(baseline))
    return Verdict.UNKNOWN, f"The engine's defaults ended as “{ended}”: the gain is unknown."


def _why_defaults(best: Trial, gain: Gain, out: Mapping[int, str]) -> str:
    if best["objectives"]:
        return "The engine's defaults are the knee of the front, the best compromise."
    if gain.rounds:
        return "What looked better at first was not when it was measured again."
    return f"Nothing that {'held' if out else 'was measured'} is better than the engine's defaults."


def _judged(gain: Gain) -> tuple[Verdict, str]:
    if gain.low is None:
        large = gain.share >= SMALLEST_GAIN
        size = f"{'at least' if large else 'less than'} {100 * SMALLEST_GAIN:.0f} %"
        reason = f"The gain is {size}; one run of each cannot tell how sure that is."
        return Verdict.BETTER if large else Verdict.NO_GAIN, reason
    interval = f"The {100 * CONFIDENCE:.0f} % interval of the gain"
    once = f"Each was measured once: it takes starts of the engine to differ by {100 * STARTS_CV:.0f} %."
    basis = _basis(gain) if gain.rounds else once
    if gain.low > 0:
        return Verdict.BETTER, f"{interval} lies above zero. {basis}"
    return Verdict.NO_GAIN, f"{interval} reaches zero, so it may be chance. {basis}"


def _basis(gain: Gain) -> str:
    """Of how many repeats the interval is."""
    of_best = f"{gain.rounds} repeat{'s' * (gain.rounds != 1)} of"
    if gain.rounds == gain.baseline_rounds:
        return f"It is from {of_best} both."
    return f"It is from {of_best} the best and {gain.baseline_rounds} of the defaults."


def _confirmed_gain(objective: Objective, again: Confirmation) -> Gain | None:
    if again.baseline is None:
        return None
    best, defaults = float(again.best["objective"]), float(again.baseline["objective"])
    share, rounds = objective.gain(best, defaults), (again.rounds, again.baseline_rounds)
    if again.margin is None:
        return Gain(share, None, None, *rounds)
    ends = [objective.gain(best * math.exp(side * again.margin), defaults) for side in (-1, 1)]
    return Gain(share, min(ends), max(ends), *rounds)


def _gain(results: StudyResults, objective: Objective, best: Trial, baseline: Trial) -> Gain:
    """The gain, with an interval from `STARTS_CV` and, for latencies, the spread between requests.

    The best of m trials looks better than it is, so the interval is the one that holds for all m at
    once: log(best/baseline) ± z·se with z at 1 − 0.05/2m (Bonferroni).
    """
    pairs = _paired(results, int(best["trial"]), int(baseline["trial"]))
    ours, theirs = _means(pairs) if pairs else (float(best["objective"]), float(baseline["objective"]))
    share = objective.gain(ours, theirs)
    if best["kind"] == "baseline":
        return Gain(share)
    error = math.hypot(math.sqrt(2) * STARTS_CV, (_standard_error(pairs) if pairs else None) or 0.0)
    candidates = max(1, len(finished(results.trials)) - 1)
    half = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / (2 * candidates)) * error
    ends = [objective.gain(ours * math.exp(side * half), theirs) for side in (-1, 1)]
    return Gain(share, min(ends), max(ends))


def standard_error(results: StudyResults, trial: int, other: int) -> float | None:
    """Of log(objective of `trial` / objective of `other`); None where requests cannot be compared."""
    pairs = _paired(results, trial, other)
    return _standard_error(pairs) if pairs else None


def _paired(results: StudyResults, trial: int, other: int) -> list[pd.DataFrame]:
    """By load level, the latencies (s) of the requests that both trials answered, in two columns.

    The same number is the same prompt in every trial. Where the time is up first, the slower trial has sent
    fewer of them: the means over all that each sent would be over different prompts. Empty for throughputs,
    and where a load level has no request in common.
    """
    one, two = _latencies(results, trial), _latencies(results, other)
    if one.keys() != two.keys():
        return []
    pairs = [pd.concat([one[step], two[step]], axis=1, join="inner") for step in one]
    return pairs if all(len(pair) for pair in pairs) else []


def _means(pairs: Sequence[pd.DataFrame]) -> tuple[float, float]:
    """The objective of either trial over the requests that they have in common."""
    ours, theirs = np.mean([pair.to_numpy().mean(axis=0) for pair in pairs], axis=0)
    return float(ours), float(theirs)


def _standard_error(pairs: Sequence[pd.DataFrame]) -> float | None:
    """Of log(ratio of the means), by bootstrap (Efron & Tibshirani 1993, chapter 6).

    Requests are resampled within each load level, since the objective is the mean over load levels of
    the mean over requests; a prompt is drawn for both, so what differs between prompts cancels.
    """
    rng = np.random.default_rng(0)
    means = np.zeros((RESAMPLES, 2))
    for pair in pairs:
        values = pair.to_numpy()
        for k in range(RESAMPLES):
            times = np.bincount(rng.integers(len(values), size=len(values)), minlength=len(values))
            means[k] += times @ values / len(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = float(np.log(means[:, 0] / means[:, 1]).std())
    return error if math.isfinite(error) else None


def _latencies(results: StudyResults, trial: int) -> dict[Any, pd.Series[float]]:
    """By load level and request, the latencies (s) that the objective averages.

    Empty for a throughput, and where a load level has no request on record.
    """
    objective = objective_of(results)
    if objective.maximise:
        return {}
    column = REQUEST_COLUMNS[objective.steered_by[0]]
    requests = results.requests[results.requests["trial"] == trial]
    good = requests[requests["error"].isna()].dropna(subset=[column]).set_index("request")
    levels = {step: level[column].astype(float) for step, level in good.groupby("step")}
    return levels if len(levels) == int((results.steps["trial"] == trial).sum()) else {}


def _slo_status(results: StudyResults) -> SloStatus | None:
    terms = slo_terms(results)
    if not terms:
        return None
    judged = rows(measured(results.trials))
    met = sum(is_true(trial["slo_met"]) for trial in judged)
    nearest = min(judged, key=lambda trial: float(trial["slo_worst_violation"]), default=None)
    if nearest is None:
        return SloStatus(terms, 0, 0)
    violation = float(nearest["slo_worst_violation"])
    return SloStatus(terms, met, len(judged), int(nearest["trial"]), str(nearest["slo_worst"]), violation)
