"""The plots of the page, each a figure from a study's results. How they look is `canvas`'s business."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tuner.analysis import (
    Status,
    Summary,
    convergence,
    effects,
    finished,
    measured,
    pareto,
    random_expectation,
    status,
)
from tuner.analysis.trials import Trial, is_number, objectives_of, rows
from tuner.report import words
from tuner.report.canvas import (
    BLUE,
    GREEN,
    INK,
    MARKERS,
    NARROW,
    ORANGE,
    PAPER,
    PURPLE,
    RED,
    WIDE,
    ScoreAxis,
    axes_of,
    legend,
)
from tuner.results import StudyResults

_MANY = 8  # numeric values beyond which a parameter gets a numeric axis
_HATCHES = {Status.FINISHED: "", Status.STOPPED: "||", Status.HARD_SLO: "//", Status.FAILED: "xx"}
_THROUGHPUT = "total_tok_s_per_gpu"


def convergence_plot(results: StudyResults, answer: Summary, unit: words.Unit) -> Figure | None:
    """The score of every trial and the best so far; None where no trial finished."""
    trials = results.trials.sort_values("trial")
    compared = finished(trials)
    if answer.best is None or compared.empty:
        return None
    figure, axes = axes_of(WIDE)
    scale = ScoreAxis(compared["score"], unit, maximise=answer.objective.maximise)
    best = convergence(trials, answer.objective)
    axes.step(best.index, scale(best), where="post", color=INK, label="best so far")
    expected = scale(_expected(trials, answer))
    axes.plot(trials["trial"], expected, ":", color=PURPLE, lw=2, label="in random order")
    if answer.gain is not None and answer.baseline is not None:
        level = float(scale(answer.baseline["score"]))
        axes.axhline(level, ls="--", lw=1.2, color=GREEN, label="engine's defaults")
    for ended, (marker, colour) in MARKERS.items():
        own = trials[np.array([status(trial) is ended for trial in rows(trials)], dtype=bool)]
        options: dict[str, Any] = {"color": colour, "ms": 5, "ls": "none", "mew": 0, "label": str(ended)}
        if ended is Status.FINISHED:
            axes.plot(own["trial"], scale(own["score"]), marker, **options)
        elif len(own):  # along the upper edge: their scores do not compare
            edge = axes.get_xaxis_transform()
            axes.plot(own["trial"], [0.96] * len(own), marker, transform=edge, **options)
    top = [float(scale(answer.best["score"]))]
    axes.plot([answer.best["trial"]], top, "*", color=ORANGE, mec=INK, mew=0.7, ms=13, label="best")
    axes.set_xlabel("trial")
    axes.set_xlim(trials["trial"].min() - 0.7, trials["trial"].max() + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    scale.fit(axes, words.score_label(answer, unit))
    legend(figure)
    return figure


def _expected(trials: pd.DataFrame, answer: Summary) -> pd.Series[float]:
    """The expected best score after each trial, were these trials run in random order.

    One that did not finish counts as the worst that did. Means are of log(score).
    """
    losses = finished(trials)["loss"].astype(float)
    every = [*losses, *[losses.max()] * (len(trials) - len(losses))]
    means = np.array([random_expectation(every, n) for n in range(1, len(every) + 1)])
    return pd.Series(np.exp(-means if answer.objective.maximise else means))


def effect_plots(
    results: StudyResults, answer: Summary, unit: words.Unit, parameters: Sequence[str]
) -> dict[str, Figure]:
    """A small plot for each parameter, all with the same score axis; none where no trial finished."""
    scores = finished(results.trials)["score"]
    if answer.best is None or scores.empty:
        return {}
    scale = ScoreAxis(scores, unit, maximise=answer.objective.maximise)
    figures = {}
    for parameter in parameters:
        figure, axes = axes_of(NARROW)
        table = effects(results.trials, parameter)
        if len(table) > _MANY and all(map(is_number, table["value"])):
            _draw_numbers(axes, table, scale)
        else:
            _draw_values(axes, results.trials, parameter, table, scale)
        axes.set_xlabel(parameter, parse_math=False)
        scale.fit(axes, f"score ({unit.name})")
        figures[parameter] = figure
    return figures


def _draw_numbers(axes: Axes, table: pd.DataFrame, scale: ScoreAxis) -> None:
    table = table[table["n"] > 0]
    values = table["value"].astype(float)
    if values.min() > 0 and values.max() >= 50 * values.min():
        axes.set_xscale("log")
    axes.plot(values, scale(table["mean"]), "o", color=BLUE, ms=5, mew=0, alpha=0.8)


def _draw_values(
    axes: Axes, trials: pd.DataFrame, parameter: str, table: pd.DataFrame, scale: ScoreAxis
) -> None:
    """Points and their mean over each value; above it, how many trials did not finish."""
    compared = finished(trials)
    labels = [words.value_text(value) for value in table["value"]]
    own = [
        words.value_text(config[parameter]) if parameter in config else None for config in compared["config"]
    ]
    for place, (label, row) in enumerate(zip(labels, rows(table), strict=True)):
        scores = scale(compared.loc[np.array([text == label for text in own], dtype=bool), "score"])
        if len(scores):
            across = place + np.linspace(-0.12, 0.12, len(scores)) * (len(scores) > 1)
            axes.plot(across, scores, "o", color=BLUE, ms=4.5, mew=0, alpha=0.7)
            axes.plot([place - 0.28, place + 0.28], [float(scale(row["mean"]))] * 2, color=INK, lw=2)
        if unfinished := row["trials"] - row["n"]:
            edge = axes.get_xaxis_transform()
            axes.plot([place - 0.06], [0.95], "X", color=RED, ms=5, mew=0, transform=edge)
            axes.text(place + 0.06, 0.95, f"{unfinished}", transform=edge, va="center", fontsize=8, color=INK)
    shown = [label if len(label) <= 16 else f"{label[:15]}…" for label in labels]
    axes.set_xticks(range(len(shown)), shown, parse_math=False)
    axes.set_xlim(-0.6, max(len(shown), 2) - 0.4)
    if sum(map(len, shown)) > 34:
        axes.tick_params(axis="x", rotation=40)


def importance_plot(shares: Mapping[str, float]) -> Figure:
    """The share of variance that each parameter explains, as bars."""
    figure, axes = axes_of((WIDE[0], 0.8 + 0.32 * len(shares)))
    places = range(len(shares))
    axes.barh(places, [100 * share for share in shares.values()], color=BLUE, height=0.6)
    axes.set_yticks(places, list(shares), parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("variance of log(score) explained (%)")
    for place, share in zip(places, shares.values(), strict=True):
        axes.text(100 * share + 1, place, f"{100 * share:.0f} %", va="center", color=INK, fontsize=8.5)
    return figure


def tradeoff_plots(results: StudyResults, answer: Summary) -> dict[str, Figure]:
    """Latency against throughput over the load levels of measured trials, a plot for each scenario.

    The latency is the first one with an SLO, else the objective's, else the end-to-end mean.
    """
    terms = answer.slo.terms if answer.slo is not None else ()
    of_objective = "latency" if answer.objective.maximise else answer.objective.name.removeprefix("minimize_")
    latency, statistic = (terms[0].latency, terms[0].statistic) if terms else (of_objective, "mean")
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


def timeline_plot(results: StudyResults) -> Figure | None:
    """When each trial ran and how it ended; None where no trial has a start."""
    trials = results.trials.dropna(subset=["started_at", "duration_s"]).sort_values("trial")
    if trials.empty:
        return None
    figure, axes = axes_of((WIDE[0], min(WIDE[1], 1.4 + 0.11 * len(trials))))
    start_s = (trials["started_at"] - trials["started_at"].min()).dt.total_seconds()
    end_s = start_s + trials["duration_s"]
    long = float(end_s.max()) > 3 * 3600
    per_unit = 3600.0 if long else 60.0
    for ended, (marker, colour) in MARKERS.items():
        own = np.array([status(trial) is ended for trial in rows(trials)], dtype=bool)
        if own.any():
            if ended is not Status.FINISHED:  # some fail too soon for their bar to be seen
                options: dict[str, Any] = {"color": colour, "ms": 5, "mew": 0}
                axes.plot(end_s[own] / per_unit, trials["trial"][own], marker, **options)
            axes.barh(
                trials["trial"][own],
                trials["duration_s"][own] / per_unit,
                left=start_s[own] / per_unit,
                color=colour,
                edgecolor=PAPER,
                linewidth=0,
                hatch=_HATCHES[ended],
                label=str(ended),
            )
    axes.set_ylim(trials["trial"].max() + 0.7, trials["trial"].min() - 0.7)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylabel("trial")
    axes.set_xlabel(f"time since the start ({'h' if long else 'min'})")
    legend(figure)
    return figure
