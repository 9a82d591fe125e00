"""Plots of the space: what matters, how the objective goes with parameters and pairs, where trials fail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from tuner.analysis import (
    Group,
    Pair,
    Summary,
    effects,
    failures,
    finished,
    pair,
    where_trials_fail,
)
from tuner.analysis.trials import is_number, is_true
from tuner.report import words
from tuner.report.canvas import (
    BLUE,
    GREEN,
    INK,
    MAP,
    NARROW,
    ORANGE,
    PAPER,
    PURPLE,
    RED,
    SKY,
    WIDE,
    ValueAxis,
    axes_of,
    legend,
)
from tuner.results import StudyResults

_LABEL = 16  # characters of a value on an axis
_MOST_IN_PAIRS = 4  # parameters, hence six pairs
_MOST_FAILING = 4  # parameters whose failures are drawn
_CAUSES = ((RED, "xx"), (ORANGE, "//"), (PURPLE, ".."), (GREEN, "\\\\"), (INK, "++"), (BLUE, "--"))


def importance_plot(shares: Mapping[str, float]) -> Figure:
    """The share of variance that each parameter explains, as bars."""
    figure, axes = axes_of((WIDE[0], 0.8 + 0.32 * len(shares)))
    places = range(len(shares))
    axes.barh(places, [100 * share for share in shares.values()], color=BLUE, height=0.6)
    axes.set_yticks(places, list(map(_short, shares)), parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xlabel("variance of log(score) explained (%)")
    for place, share in zip(places, shares.values(), strict=True):
        axes.text(100 * share + 1, place, f"{100 * share:.0f} %", va="center", color=INK, fontsize=8.5)
    return figure


def effect_plots(
    results: StudyResults, answer: Summary, unit: words.Unit, parameters: Sequence[str]
) -> dict[str, Figure]:
    """A small plot for each parameter, all with the same axis of values; none where no trial finished."""
    compared = finished(results.trials).dropna(subset=["objective"])
    if answer.best is None or compared.empty:
        return {}
    scale = ValueAxis(compared["objective"], unit, maximise=answer.objective.maximise)
    figures = {}
    for parameter in parameters:
        figure, axes = axes_of(NARROW)
        table = effects(results.trials, parameter)
        own = compared[np.array([parameter in config for config in compared["config"]], dtype=bool)]
        values = own["config"].map(lambda config, name=parameter: config[name])
        if any(group.first != group.last for group in table["group"]):
            _draw_numbers(axes, table, values.astype(float), own, scale)
        else:
            _draw_values(axes, table, values, own, scale)
        axes.set_xlabel(_short(parameter), parse_math=False)
        scale.fit(axes, words.value_label(answer, unit))
        figures[parameter] = figure
    return figures


def _draw_numbers(
    axes: Axes, table: pd.DataFrame, values: pd.Series[float], own: pd.DataFrame, scale: ValueAxis
) -> None:
    """Points over a numeric axis; the mean over each bin of values, and its interval."""
    if _by_ratio(values):
        axes.set_xscale("log")
    _draw_points(axes, values, own, scale)
    for row in table[table["n"] > 0].to_dict("records"):
        _draw_mean(axes, row, (row["group"].first, row["group"].last), scale)


def _by_ratio(values: pd.Series[float]) -> bool:
    """Whether values span ratios: their median is nearer to the ends' geometric mean than to the other."""
    low, high, middle = float(values.min()), float(values.max()), float(values.median())
    if not 0 < 50 * low <= high:
        return False
    return abs(math.log(middle**2 / (low * high))) < 2 * abs(math.log(2 * middle / (low + high)))


def _draw_values(
    axes: Axes, table: pd.DataFrame, values: pd.Series[Any], own: pd.DataFrame, scale: ValueAxis
) -> None:
    """Points over each value, the mean and its interval; above it, how many trials did not finish."""
    for place, row in enumerate(table.to_dict("records")):
        value = row["group"].first
        same = np.array([_same(other, value) for other in values], dtype=bool)
        across = place + np.linspace(-0.12, 0.12, max(int(same.sum()), 1)) * (same.sum() > 1)
        if same.any():
            _draw_points(axes, across, own[same], scale)
            _draw_mean(axes, row, (place - 0.28, place + 0.28), scale)
        if unfinished := row["trials"] - row["n"]:
            edge = axes.get_xaxis_transform()
            axes.plot([place - 0.06], [0.95], "X", color=RED, ms=5, mew=0, transform=edge)
            axes.text(place + 0.06, 0.95, f"{unfinished}", transform=edge, va="center", fontsize=8, color=INK)
    _label_groups(axes, list(table["group"]))


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _draw_points(axes: Axes, across: Any, own: pd.DataFrame, scale: ValueAxis) -> None:
    """The objective of trials, hollow where they broke an SLO."""
    kept = np.array([is_true(met) for met in own["slo_met"]], dtype=bool)
    places, values = np.asarray(across), scale(own["objective"])
    axes.plot(places[kept], values[kept], "o", color=BLUE, ms=4.5, mew=0, alpha=0.7)
    axes.plot(places[~kept], values[~kept], "o", color=BLUE, ms=4.5, mfc="none", mew=0.9, alpha=0.7)


def _draw_mean(axes: Axes, row: Mapping[Any, Any], ends: tuple[float, float], scale: ValueAxis) -> None:
    mean, low, high = (float(scale(row[name])) for name in ("mean", "low", "high"))
    left, right = ends
    if np.isfinite(low) and np.isfinite(high):
        axes.fill_between([left, right], low, high, color=INK, alpha=0.14, lw=0)
    axes.plot([left, right], [mean, mean], color=INK, lw=2)


def _label_groups(axes: Axes, groups: Sequence[Group], *, up: bool = False, most: int = 30) -> None:
    """The groups' names along the axis across, aslant beyond `most` characters, or up."""
    shown = list(map(group_text, groups))
    axis = axes.yaxis if up else axes.xaxis
    axis.set_ticks(range(len(shown)), shown, parse_math=False)
    if up:
        axes.set_ylim(-0.5, len(shown) - 0.5)
        return
    axes.set_xlim(-0.6, max(len(shown), 2) - 0.4)
    if sum(map(len, shown)) > most:
        axes.tick_params(axis="x", rotation=40)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def group_text(group: Group) -> str:
    """`lpm`, or `0.6–0.68` for a bin of numbers."""
    ends = [group.first] if _same(group.first, group.last) else [group.first, group.last]
    texts = [words.digits(end, trim=True) if len(ends) > 1 else words.value_text(end) for end in ends]
    return _short("–".join(texts))


def _short(text: str) -> str:
    most = 2 * _LABEL
    return text if len(text) <= most else f"{text[: most - 1]}…"


def pair_plots(
    results: StudyResults, answer: Summary, unit: words.Unit, parameters: Sequence[str]
) -> dict[str, Figure]:
    """A map of the objective for each two of the first few `parameters`; white where nothing was measured."""
    varied = [name for name in parameters if len({repr(c.get(name)) for c in results.trials["config"]}) > 2]
    tables = {
        (one, two): pair(results.trials, one, two) for one, two in combinations(varied[:_MOST_IN_PAIRS], 2)
    }
    tables = {names: table for names, table in tables.items() if table.n.sum() > 0}
    if answer.best is None or not tables:
        return {}
    values = np.concatenate([table.mean[table.n > 0] for table in tables.values()]) * unit.factor
    low, high = float(values.min()), float(values.max())
    norm = LogNorm(low, high) if high > 20 * low > 0 else Normalize(low, high)
    best = answer.best["config"]
    figures = {}
    for (one, two), table in tables.items():
        figure, axes = axes_of(MAP)
        _draw_map(axes, table, unit, norm, maximise=answer.objective.maximise)
        _mark_best(axes, table, best.get(one), best.get(two))
        axes.set_xlabel(_short(one), parse_math=False)
        axes.set_ylabel(_short(two), parse_math=False)
        figures[f"{two} by {one}"] = figure
    return figures


def _draw_map(axes: Axes, table: Pair, unit: words.Unit, norm: Normalize, *, maximise: bool) -> None:
    """Cells darker where the objective is better, in brackets where none kept the SLOs."""
    colours = mpl.colormaps["cividis_r" if maximise else "cividis"]
    axes.grid(visible=False)
    for up, across in np.ndindex(table.mean.shape):
        if table.n[up, across]:
            value = float(table.mean[up, across]) * unit.factor
            colour = colours(norm(value))
            corner = (across - 0.5, up - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor=PAPER, lw=1))
            text = _brief(value) if table.kept[up, across] else f"({_brief(value)})"
            bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.5
            ink = "#000001" if bright else "#ffffff"  # on the cell, whatever the page's own colours
            axes.text(across, up, text, ha="center", va="center", fontsize=7.5, color=ink)
        elif table.trials[up, across]:
            axes.plot([across], [up], "X", color=RED, ms=6, mew=0)
    _label_groups(axes, table.first, most=22)
    _label_groups(axes, table.second, up=True)
    axes.set_xlim(-0.5, len(table.first) - 0.5)


def _brief(value: float) -> str:
    """Three digits: `564`, `0.0312`, `14.1k`."""
    return f"{value / 1000:.3g}k" if 10_000 <= abs(value) < 1e7 else words.digits(value)


def _mark_best(axes: Axes, table: Pair, first: Any, second: Any) -> None:
    """A frame and a star in the cell of the best configuration."""
    place = [
        next((k for k, group in enumerate(groups) if _within(value, group)), None)
        for groups, value in ((table.first, first), (table.second, second))
    ]
    if place[0] is not None and place[1] is not None:
        corner = (place[0] - 0.5, place[1] - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=ORANGE, lw=2.5, zorder=5))
        star: dict[str, Any] = {"color": ORANGE, "mec": PAPER, "mew": 0.7, "ms": 10, "zorder": 6}
        axes.plot([place[0] - 0.3], [place[1] + 0.26], "*", **star)


def _within(value: Any, group: Group) -> bool:
    if is_number(value) and is_number(group.first):
        return bool(group.first <= value <= group.last)
    return _same(value, group.first)


def failure_plots(results: StudyResults) -> dict[str, Figure]:
    """How trials ended over the values of the parameters that tell most of failures, by cause."""
    causes = list(results.trials["failure_cause"].dropna().value_counts().index)
    looks = dict(zip(causes, [_CAUSES[k % len(_CAUSES)] for k in range(len(causes))], strict=True))
    figures = {}
    for parameter in where_trials_fail(results.trials)[:_MOST_FAILING]:
        figure, axes = axes_of(NARROW)
        table = failures(results.trials, parameter)
        below = np.zeros(len(table))
        for end in ["no failure", *causes]:
            if end not in table:
                continue
            colour, hatch = looks.get(end, (SKY, ""))
            heights = table[end].to_numpy(float)
            axes.bar(
                range(len(table)),
                heights,
                bottom=below,
                width=0.7,
                color=colour,
                hatch=hatch,
                edgecolor=PAPER,
                linewidth=0.4,
                label=end,
            )
            below += heights
        _label_groups(axes, list(table.index))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        axes.set_xlabel(_short(parameter), parse_math=False)
        axes.set_ylabel("trials")
        legend(figure, columns=2)
        figures[parameter] = figure
    return figures
