"""What the trials show together: convergence, the trade-off, and which parameters matter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tuner.analysis.trials import finished, is_number, natural_order, parameters_of
from tuner.objective import Objective

MIN_TRIALS = 8  # finished ones, for shares of variance
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
    """How the score goes with the values of `parameter`, in their natural order.

    Columns: `value`, `trials` (that tried it), `n` (finished), `mean`, `min` and `max` of the score;
    the mean is geometric, since SLO penalties are factors.
    """
    tried = trials[np.array([parameter in config for config in trials["config"]], dtype=bool)]
    values = tried["config"].map(lambda config: config[parameter])
    compared = tried.index.isin(finished(tried).index)
    found = []
    for value in natural_order(values):
        same = values.map(lambda other, value=value: other == value and type(other) is type(value))
        scores = tried.loc[same.astype(bool) & compared, "score"].astype(float)
        statistics = {"mean": np.exp(np.log(scores).mean()), "min": scores.min(), "max": scores.max()}
        found.append({"value": value, "trials": int(same.sum()), "n": len(scores), **statistics})
    return pd.DataFrame(found, columns=["value", "trials", "n", "mean", "min", "max"])


def importance(trials: pd.DataFrame) -> dict[str, float] | None:
    """The share of the variance of log(score) that each parameter explains alone, the largest first.

    Kelley's ε² (1935): the between-groups share of a one-way analysis of variance, less what as many
    random groups would show; so shares need not sum to one, and a parameter without effect gets 0.
    None for fewer than MIN_TRIALS finished trials, or where no parameter has two values. Optuna's
    PED-ANOVA is not used: its top quantile is two or three trials here, and on 25 trials of measured
    surfaces it named the most important parameter in 27-50 %, ε² in 79-87 %.
    """
    compared = finished(trials)
    compared = compared[compared["kind"] != "baseline"]
    if len(compared) < MIN_TRIALS:
        return None
    logs = compared["loss"].to_numpy(float)  # ±log(score), kept finite
    shares = {
        name: _epsilon_squared(logs, groups)
        for name in parameters_of(compared)
        if len(set(groups := _groups([config.get(name) for config in compared["config"]]))) > 1
    }
    return dict(sorted(shares.items(), key=lambda item: -item[1])) or None


def _groups(values: Sequence[Any]) -> list[str]:
    """A label for each value; numbers with many values are cut into quantile bins."""
    if len(set(values)) > _MOST_VALUES and all(map(is_number, values)):
        values = pd.qcut(pd.Series(values, dtype=float), _BINS, labels=False, duplicates="drop").tolist()
    return [repr(value) for value in values]


def _epsilon_squared(values: np.ndarray, groups: Sequence[str]) -> float:
    by_group = pd.Series(values).groupby(np.asarray(groups))
    total = float(((values - values.mean()) ** 2).sum())
    within = float(((values - by_group.transform("mean").to_numpy()) ** 2).sum())
    degrees = len(values) - by_group.ngroups
    if degrees < 1 or total <= 0:
        return 0.0
    return max(0.0, (total - within - (by_group.ngroups - 1) * within / degrees) / total)
