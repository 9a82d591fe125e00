"""Plots of the study's course: how the search went on, and what ran where and when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tuner.analysis import RandomSearch, Status, Summary, convergence, finished, status
from tuner.analysis.trials import Trial, is_true, rows
from tuner.report import words
from tuner.report.canvas import (
    GREEN,
    INK,
    MARKERS,
    ORANGE,
    PAPER,
    PURPLE,
    WIDE,
    ValueAxis,
    axes_of,
    legend,
)
from tuner.results import StudyResults

_HATCHES = {Status.FINISHED: "", Status.STOPPED: "||", Status.HARD_SLO: "//", Status.FAILED: "xx"}
_MOST_NAMED = 28  # GPUs of the time line that have their names beside them
_NEAR = 4  # a grid of up to so many times the trials is drawn, as the axis's end


def convergence_plot(
    results: StudyResults, answer: Summary, unit: words.Unit, chance: RandomSearch | None
) -> Figure | None:
    """The objective of every trial and the best so far; None where no trial finished."""
    trials = results.trials.sort_values("trial")
    compared = finished(trials).dropna(subset=["objective"])
    if answer.best is None or compared.empty:
        return None
    figure, axes = axes_of(WIDE)
    scale = ValueAxis(compared["objective"], unit, maximise=answer.objective.maximise)
    first = dict(zip(compared["score"][::-1], compared["objective"][::-1], strict=True))
    best = convergence(trials, answer.objective).map(first).astype(float)
    axes.step(best.index, scale(best), where="post", color=INK, label="best so far")
    if chance is not None:
        numbers = trials["trial"].iloc[-len(chance.scores) :]
        axes.plot(numbers, scale(chance.scores), ":", color=PURPLE, lw=2, label="random, expected")
    if answer.gain is not None and answer.baseline is not None:
        level = float(scale(answer.baseline["objective"]))
        axes.axhline(level, ls="--", lw=1.2, color=GREEN, label="engine's defaults")
    _draw_trials(axes, trials, scale)
    top = [float(scale(answer.best["objective"]))]
    axes.plot([answer.best["trial"]], top, "*", color=ORANGE, mec=INK, mew=0.7, ms=13, label="best")
    last = int(trials["trial"].max())
    if chance is not None and len(trials) < chance.size <= _NEAR * len(trials):
        last = int(chance.size)
        axes.axvline(last, color=INK, lw=1.2, ls=(0, (1, 3)), label="whole grid")
    axes.set_xlabel("trial")
    axes.set_xlim(trials["trial"].min() - 0.7, last + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    scale.fit(axes, words.value_label(answer, unit))
    legend(figure)
    return figure


def _draw_trials(axes: Axes, trials: pd.DataFrame, scale: ValueAxis) -> None:
    """A marker for each: hollow where it broke an SLO, at the upper edge where it does not compare."""
    for ended, (marker, colour) in MARKERS.items():
        own = trials[np.array([status(trial) is ended for trial in rows(trials)], dtype=bool)]
        options: dict[str, Any] = {"color": colour, "ms": 5, "ls": "none", "label": str(ended)}
        if ended is Status.FINISHED:
            kept = np.array([is_true(met) for met in own["slo_met"]], dtype=bool)
            axes.plot(own["trial"][kept], scale(own["objective"][kept]), marker, mew=0, **options)
            options |= {"mfc": PAPER, "label": "finished, SLO broken"}
            if not kept.all():
                axes.plot(own["trial"][~kept], scale(own["objective"][~kept]), marker, **options)
        elif len(own):
            edge = axes.get_xaxis_transform()
            axes.plot(own["trial"], [0.96] * len(own), marker, transform=edge, mew=0, **options)


def timeline_plot(results: StudyResults) -> Figure | None:
    """What ran on which GPU and when; where GPUs are unknown, when each trial ran. None without a start."""
    trials = results.trials.dropna(subset=["started_at", "duration_s"]).sort_values("trial")
    if trials.empty:
        return None
    start_s = (trials["started_at"] - trials["started_at"].min()).dt.total_seconds()
    lasted_s = float((start_s + trials["duration_s"]).max())
    unit, in_unit = ("h", 3600.0) if lasted_s > 10_800 else ("min", 60.0) if lasted_s > 180 else ("s", 1.0)
    lanes = [_gpus_of(trial) for trial in rows(trials)]
    names = sorted({lane for own in lanes for lane in own})
    every = [
        _Bar(trial, place, begin / in_unit, trial["duration_s"] / in_unit)
        for trial, begin, own in zip(rows(trials), start_s, lanes, strict=True)
        for place in ([names.index(lane) for lane in own] if names else [int(trial["trial"])])
    ]
    height = min(1.3 + 0.3 * len(names), 6.0) if names else min(4.5, 1.4 + 0.11 * len(trials))
    figure, axes = axes_of((WIDE[0], height))
    _draw_bars(axes, every)
    if names:
        _number_bars(axes, every, lasted_s / in_unit)
        named = range(0, len(names), math.ceil(len(names) / _MOST_NAMED))
        labels = [f"{names[place][0]} GPU {names[place][2]}" for place in named]
        axes.set_yticks(named, labels, parse_math=False)
        axes.set_ylim(len(names) - 0.4, -0.6)
    else:
        axes.set_ylim(trials["trial"].max() + 0.7, trials["trial"].min() - 0.7)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_ylabel("trial")
    axes.set_xlim(0, 1.02 * lasted_s / in_unit or 1)
    axes.set_xlabel(f"time since the start ({unit})")
    legend(figure)
    return figure


@dataclass(frozen=True)
class _Bar:
    """A trial's time on one line of the time line."""

    trial: Trial
    place: int
    begin: float
    length: float


def _gpus_of(trial: Trial) -> list[tuple[str, float, str]]:
    """(node, number, id) of each GPU that a trial ran on; empty where it was given none."""
    node = trial["node"] if isinstance(trial["node"], str) else ""
    short = node.partition(".")[0]
    short = short if len(short) <= 14 else f"…{short[-13:]}"
    ids = [str(gpu) for gpu in trial["gpu_ids"]] if np.iterable(trial["gpu_ids"]) else []
    return [(short, float(gpu) if gpu.isdigit() else 0.0, gpu[:8]) for gpu in ids]


def _draw_bars(axes: Axes, every: Sequence[_Bar]) -> None:
    for ended, (marker, colour) in MARKERS.items():
        own = [bar for bar in every if status(bar.trial) is ended]
        if not own:
            continue
        places = [bar.place for bar in own]
        axes.barh(
            places,
            [bar.length for bar in own],
            left=[bar.begin for bar in own],
            color=colour,
            edgecolor=PAPER,
            linewidth=0.4,
            hatch=_HATCHES[ended],
            label=str(ended),
        )
        if ended is not Status.FINISHED:  # some fail too soon for their bar to be seen
            ends = [bar.begin + bar.length for bar in own]
            axes.plot(ends, places, marker, color=colour, mec=PAPER, mew=0.4, ms=5)


def _number_bars(axes: Axes, every: Sequence[_Bar], lasted: float) -> None:
    """The trials' numbers in their bars, where there is room."""
    for bar in every:
        text = str(bar.trial["trial"])
        if status(bar.trial) is Status.FINISHED and bar.length > 0.018 * (1 + len(text)) * lasted:
            options: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": PAPER}
            axes.text(bar.begin + bar.length / 2, bar.place, text, **options)
