"""What the trials show together: convergence, the trade-off, effects, and where they fail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from tuner.analysis.groups import Group, grouped
from tuner.analysis.trials import Status, finished, is_true, parameters_of, rows, status
from tuner.objective import Objective

MIN_TRIALS = 8  # finished ones, to tell what they have in common
_TELLS = 0.05  # share of the variance of failing
_MOST_VALUES = 6  # a numeric parameter with more of them is cut
_BINS = 4  # into so many quantile bins


def convergence(trials: pd.DataFrame, objective: Objective) -> pd.Series[float]:
    """The best score so far, by trial number; NaN until a trial has finished."""
    ordered = trials.sort_values("trial")
    scores = ordered["score"].where(ordered["trial"].isin(finished(trials)["trial"])).astype(float)
    best = (scores.cummax() if objective.maximise else scores.cummin()).ffill()
    return best.set_axis(ordered["trial"].to_numpy())


def random_expectation(values: Sequence[float], n: int) -> float:
    """The expected lowest of `n` of `values`, drawn at random without replacement.

    The i-th lowest of N is the lowest drawn with probability C(N − i, n − 1)/C(N, n). ValueError
    unless 1 <= n <= N.
    """
    total = len(values)
    if not 1 <= n <= total:
        raise ValueError(f"cannot draw {n} of {total}")
    after = np.arange(1, total - n + 1)  # how many lower values were left out
    survival = np.cumprod(np.concatenate([[1.0], (total - n + 1 - after) / (total - after + 1)]))
    weights = survival * n / (total - np.arange(total - n + 1))
    return float(weights @ np.sort(np.asarray(values, dtype=float))[: len(weights)])


def pareto(
    steps: pd.DataFrame, latency: str = "latency_mean_s", throughput: str = "total_tok_s_per_gpu"
) -> pd.DataFrame:
    """The steps that no other beats in `latency` (lower) and `throughput` (higher), fastest first."""
    ordered = steps.dropna(subset=[latency, throughput]).sort_values(
        [latency, throughput], ascending=[True, False]
    )
    before = ordered[throughput].cummax().shift(fill_value=-math.inf)
    return ordered[ordered[throughput] > before]


def effects(trials: pd.DataFrame, parameter: str) -> pd.DataFrame:
    """How the objective goes with the values of `parameter`, a row for each group of them, in order.

    Columns: `group`, `trials` (that tried it), `n` (finished), and of the objectives above 0 the geometric
    `mean` with `low` and `high`, the ends of its 95 % interval. That is Student's, of log(objective), with
    the variance pooled over all groups, as in an analysis of variance: a group of one trial has an interval,
    too. NaN where it cannot be told. What else the trials set differs between groups, so a difference
    need not be this parameter's alone.
    """
    tried = trials[np.array([parameter in config for config in trials["config"]], dtype=bool)]
    found, places = grouped([config[parameter] for config in tried["config"]])
    compared = tried.index.isin(finished(tried).index)
    logs = _log_objectives(tried)
    here = [compared & (np.array(places, dtype=int) == place) for place in range(len(found))]
    samples = [own[np.isfinite(own)] for own in (logs[own] for own in here)]
    freedom = sum(len(own) - 1 for own in samples if len(own))
    squares = sum(float(((own - own.mean()) ** 2).sum()) for own in samples if len(own))
    wide = float(stdtrit(freedom, 0.975)) * math.sqrt(squares / freedom) if freedom else math.nan
    table = []
    for place, (group, own) in enumerate(zip(found, samples, strict=True)):
        n = int(here[place].sum())
        mean = float(own.mean()) if len(own) else math.nan
        half = wide / math.sqrt(len(own)) if len(own) else math.nan
        ends = {"mean": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half)}
        table.append({"group": group, "trials": places.count(place), "n": n, **ends})
    return pd.DataFrame(table, columns=["group", "trials", "n", "mean", "low", "high"])


@dataclass(frozen=True)
class Pair:
    """Two parameters together: (second, first) tables by their groups.

    `mean` is the geometric mean of the objective, NaN where nothing finished; `n` of the trials that
    finished, `trials` of those that tried it, `kept` of those that finished and kept every SLO.
    """

    first: Sequence[Group]
    second: Sequence[Group]
    mean: np.ndarray
    n: np.ndarray
    trials: np.ndarray
    kept: np.ndarray


def pair(trials: pd.DataFrame, first: str, second: str) -> Pair:
    """What was measured of every pair of values of two parameters; numbers with many values in five bins."""
    both = [first in config and second in config for config in trials["config"]]
    tried = trials[np.array(both, dtype=bool)]
    across, columns = grouped([config[first] for config in tried["config"]], most=6)
    up, lines = grouped([config[second] for config in tried["config"]], most=6)
    shape = (len(up), len(across))
    compared = tried.index.isin(finished(tried).index)
    places = (np.array(lines, dtype=int), np.array(columns, dtype=int))
    total, n, count, kept = (np.zeros(shape) for _ in range(4))
    np.add.at(count, places, 1)
    np.add.at(n, places, compared)
    np.add.at(kept, places, compared & np.array([is_true(met) for met in tried["slo_met"]], dtype=bool))
    np.add.at(total, places, np.where(compared, _log_objectives(tried), 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return Pair(across, up, np.exp(total / n), n, count, kept)


def _log_objectives(trials: pd.DataFrame) -> np.ndarray:
    """NaN where there is none, or none that could be."""
    values = trials["objective"].to_numpy(float)
    return np.log(np.where(values > 0, values, np.nan))


def failures(trials: pd.DataFrame, parameter: str) -> pd.DataFrame:
    """How trials ended over the groups of `parameter`: a line for each, a column for each way to end."""
    tried = [trial for trial in rows(trials) if parameter in trial["config"]]
    found, places = grouped([trial["config"][parameter] for trial in tried])
    ends = [trial["failure_cause"] if status(trial) is Status.FAILED else "no failure" for trial in tried]
    table = pd.crosstab(pd.Series(places, dtype=int), pd.Series(ends, dtype=str))
    return table.set_axis([found[int(place)] for place in table.index])


def where_trials_fail(trials: pd.DataFrame) -> list[str]:
    """The parameters whose values tell where trials fail, the best first; empty without failures.

    By the ε² of the one cause that a parameter tells best: those of 5 % or more, else the first alone.
    """
    own = trials[trials["kind"] != "baseline"]
    causes = [trial["failure_cause"] if status(trial) is Status.FAILED else None for trial in rows(own)]
    ended = {
        cause: np.array([each == cause for each in causes], dtype=float) for cause in set(causes) - {None}
    }
    shares = {}
    for name in parameters_of(own):
        groups = _groups([config.get(name) for config in own["config"]])
        shares[name] = max((_epsilon_squared(failed, groups) for failed in ended.values()), default=0.0)
    ranked = sorted((name for name in shares if shares[name] > 0), key=lambda name: -shares[name])
    return [name for name in ranked if shares[name] >= _TELLS] or ranked[:1]


def _groups(values: Sequence[Any]) -> list[int]:
    """The place of each value's group; numbers with many values are cut into quantile bins."""
    return grouped(values, most=_MOST_VALUES, bins=_BINS)[1]


def _epsilon_squared(values: np.ndarray, groups: Sequence[int]) -> float:
    """Kelley's ε² (1935): the share of the variance that lies between groups, less what random ones show."""
    by_group = pd.Series(values).groupby(np.asarray(groups))
    total = float(((values - values.mean()) ** 2).sum())
    within = float(((values - by_group.transform("mean").to_numpy()) ** 2).sum())
    degrees = len(values) - by_group.ngroups
    if degrees < 1 or total <= 0:
        return 0.0
    return max(0.0, (total - within - (by_group.ngroups - 1) * within / degrees) / total)
