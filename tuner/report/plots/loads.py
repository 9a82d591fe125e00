"""Plots of what the load levels showed: the trade-off, the front of several objectives, single requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tuner.analysis import Summary, finished, measured, pareto
from tuner.analysis.trials import REQUEST_COLUMNS, Trial, objectives_of, rows
from tuner.objective import SloTerm
from tuner.report import words
from tuner.report.canvas import BLUE, GREEN, INK, NARROW, ORANGE, RED, WIDE, axes_of, legend
from tuner.results import StudyResults
from tuner.space import config_key

_LATENCY_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "latency": "end-to-end latency"}
_MOST_POINTS = 400  # of a curve
_THROUGHPUT = "total_tok_s_per_gpu"


def tradeoff_plots(results: StudyResults, answer: Summary) -> dict[str, Figure]:
    """Latency against throughput over the load levels of measured trials, a plot for each scenario.

    The latency is the first one with an SLO, else the objective's, else the end-to-end mean.
    """
    terms = answer.slo.terms if answer.slo is not None else ()
    latency, statistic = (terms[0].latency, terms[0].statistic) if terms else answer.objective.steered_by
    column = f"{latency}_{statistic}_s"
    steps = results.steps[results.steps["trial"].isin(measured(results.trials)["trial"])]
    figures = {}
    for scenario, own in steps.dropna(subset=[column, _THROUGHPUT]).groupby("scenario"):
        figure, axes = axes_of(WIDE)
        unit = words.seconds(float(own[column].median()))
        _draw_tradeoff(axes, own.assign(latency=own[column] * unit.factor), answer)
        if terms:
            threshold = terms[0].threshold_s * unit.factor
            axes.axvline(threshold, ls="-.", lw=1.4, color=RED, label=f"SLO {terms[0].name}")
        axes.set_xlabel(f"{latency} {statistic} ({unit.name})")
        axes.set_ylabel("input + output tok/s per GPU")
        legend(figure)
        figures[str(scenario)] = figure
    return figures


def _draw_tradeoff(axes: Axes, steps: pd.DataFrame, answer: Summary) -> None:
    loads = steps.sort_values(["concurrency", "request_rate"]).apply(words.load_text, axis=1)
    markers = cycle("osv^Dph<>")
    for load, marker in zip(loads.unique(), markers, strict=False):
        level = steps[loads.reindex(steps.index) == load]
        options: dict[str, Any] = {
            "color": BLUE,
            "ms": 5,
            "alpha": 0.6,
            "mew": 0,
            "label": load,
        }
        axes.plot(level["latency"], level[_THROUGHPUT], marker, **options)
    front = pareto(steps, "latency", _THROUGHPUT)
    axes.plot(front["latency"], front[_THROUGHPUT], color=INK, lw=1.1, label="Pareto front")
    if answer.baseline is not None and not answer.defaults_are_best:
        _mark(axes, steps, answer.baseline, marker="D", color=GREEN, ms=7, label="engine's defaults")
    if answer.best is not None:
        _mark(axes, steps, answer.best, marker="*", color=ORANGE, ms=13, label="best")


def _mark(axes: Axes, steps: pd.DataFrame, trial: Trial, **options: Any) -> None:
    own = steps[steps["trial"] == trial["trial"]]
    if len(own):
        axes.plot(own["latency"], own[_THROUGHPUT], ls="none", mec=INK, mew=0.7, **options)


def front_plot(results: StudyResults, answer: Summary) -> Figure:
    """The first two of several objectives over all finished trials, the front as a line."""
    across, up = objectives_of(results)[:2]
    figure, axes = axes_of(WIDE)

    def place(trials: Sequence[Trial]) -> list[list[float]]:
        units = [words.display_unit(each) for each in (across, up)]
        values = [[trial["objectives"][each.name]["objective"] for trial in trials] for each in (across, up)]
        return [[unit.factor * value for value in own] for unit, own in zip(units, values, strict=True)]

    compared = rows(finished(results.trials))
    axes.plot(*place(compared), "o", color=BLUE, ms=5, alpha=0.6, mew=0, label="finished trial")
    ordered = sorted(answer.front, key=lambda trial: float(trial["objectives"][across.name]["objective"]))
    axes.plot(*place(ordered), "-", color=INK, lw=1.1, label="Pareto front")
    defaults = [trial for trial in compared if trial["kind"] == "baseline"]
    axes.plot(*place(defaults), "D", color=GREEN, mec=INK, mew=0.7, ms=7, label="engine's defaults")
    axes.plot(*place(answer.front[:1]), "*", color=ORANGE, mec=INK, mew=0.7, ms=13, label="knee")
    heads = words.front_heads([across, up])
    axes.set_xlabel(heads[0])
    axes.set_ylabel(heads[1])
    legend(figure)
    return figure


def distribution_plots(results: StudyResults, answer: Summary) -> Iterator[tuple[str, str, Figure]]:
    """How many requests were faster than what, for the best and the defaults: latency, load, figure.

    Of the highest load that both were measured at, over all runs of either; none where there is none, or the
    defaults are the best. A promise of a percentile is a cross, which a curve has to pass on its left.
    """
    if answer.best is None or answer.baseline is None or answer.defaults_are_best:
        return
    runs = {"best": _runs(results, answer.best), "engine's defaults": _runs(results, answer.baseline)}
    for level in _highest_in_common(results.steps, *runs.values()):
        for latency, column in REQUEST_COLUMNS.items():
            samples = {name: _latencies(results, own, level, column) for name, own in runs.items()}
            if any(len(sample) < 2 for sample in samples.values()):
                continue
            terms = answer.slo.terms if answer.slo is not None else ()
            promised = [term for term in terms if term.latency == latency]
            name = _LATENCY_NAMES[latency]
            yield name, words.level_text(level), _distribution(samples, promised, name)


def _runs(results: StudyResults, trial: Trial) -> list[int]:
    """The trials that measured this trial's configuration to its end."""
    key = config_key(trial["config"])
    whole = finished(results.trials)
    return [
        int(n) for n, config in zip(whole["trial"], whole["config"], strict=True) if config_key(config) == key
    ]


def _highest_in_common(steps: pd.DataFrame, one: list[int], two: list[int]) -> Iterator[dict[str, Any]]:
    """The load level with the highest load that both measured, for each scenario, as a row of `steps`."""
    loads = ["scenario", "concurrency", "request_rate"]
    own, other = (steps[steps["trial"].isin(trials)] for trials in (one, two))
    levels = {tuple(row) for row in other[loads].fillna(-1.0).itertuples(index=False)}
    common = [tuple(row) in levels for row in own[loads].fillna(-1.0).itertuples(index=False)]
    shared = own[np.array(common, dtype=bool)]  # of an empty list pandas would take the columns
    ordered = shared.sort_values(["concurrency", "request_rate"])
    for _, found in ordered.groupby("scenario", sort=False):
        yield rows(found)[-1]


def _latencies(results: StudyResults, trials: list[int], level: dict[str, Any], column: str) -> np.ndarray:
    steps = results.steps[results.steps["trial"].isin(trials)]
    same = steps["scenario"] == level["scenario"]
    for name in ("concurrency", "request_rate"):
        same &= steps[name].isna() if pd.isna(level[name]) else steps[name] == level[name]
    keys = pd.MultiIndex.from_frame(steps.loc[same, ["trial", "step"]])
    requests = results.requests[results.requests["error"].isna()]
    own = pd.MultiIndex.from_frame(requests[["trial", "step"]]).isin(keys)
    return np.sort(requests.loc[own, column].dropna().to_numpy(float))


def _distribution(samples: dict[str, np.ndarray], promised: Sequence[SloTerm], name: str) -> Figure:
    figure, axes = axes_of(NARROW)
    unit = words.seconds(float(min(np.median(sample) for sample in samples.values())))
    looks: dict[str, dict[str, Any]] = {
        "best": {"color": BLUE, "ls": "-"},
        "engine's defaults": {"color": GREEN, "ls": "--"},
    }
    for who, sample in samples.items():
        shares = 100 * np.arange(1, len(sample) + 1) / len(sample)
        kept = np.unique(np.linspace(0, len(sample) - 1, _MOST_POINTS).astype(int))
        label = f"{who}, n = {len(sample):,}"
        axes.step(unit.factor * sample[kept], shares[kept], where="post", lw=1.8, label=label, **looks[who])
    for term in promised:
        place = unit.factor * term.threshold_s
        options: dict[str, Any] = {"color": RED, "label": f"SLO {term.name}"}
        if term.statistic == "mean":
            axes.axvline(place, ls="-.", lw=1.4, **options)
        else:
            reached = float(term.statistic.removeprefix("p"))
            axes.plot([place], [reached], "P", ms=8, mec=INK, mew=0.7, **options)
    axes.set_ylim(0, 104)
    axes.set_xlim(left=0)
    axes.set_ylabel("requests (%)")
    axes.set_xlabel(f"{name} ({unit.name})")
    legend(figure, columns=1)
    return figure
