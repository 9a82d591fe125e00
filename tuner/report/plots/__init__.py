"""Every plot of a study, in the order of the page, with a note for its reader. `canvas` has the looks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from tuner.analysis import (
    RandomSearch,
    Summary,
    convergence,
    importance,
    random_search,
    summary,
    without_repeats,
)
from tuner.analysis.trials import parameters_of
from tuner.report import words
from tuner.report.plots import course, loads, space
from tuner.results import StudyResults

_POINTS = "Each point is a load level of a trial that was measured to its end."
_IMPORTANCE = (
    "Share of the differences between the configurations of the space that a parameter explains by itself: "
    "fANOVA of log(score), which counts broken SLOs. With few trials these shares are rough."
)


@dataclass(frozen=True)
class Plot:
    """A figure with its title, a note, and the section of the page that it belongs to.

    `name` is a file's: `effect-tp-size`; no two of a study are the same.
    """

    section: str
    name: str
    title: str
    figure: Figure
    note: str = ""

    @property
    def small(self) -> bool:
        """Whether several stand in one row."""
        return float(self.figure.get_figwidth()) < 4.0


def every_plot(results: StudyResults) -> list[Plot]:
    """The plots that the study's results carry, in the page's order."""
    answer = summary(results)
    counts: Counter[str] = Counter()
    found = []
    for section, title, figure, note in _every(results, answer, words.unit_of(results)):
        name = re.sub(r"[^a-z0-9]+", "-", f"{section} {title}".lower()).strip("-")[:80] or "plot"
        counts[name] += 1
        name = name if counts[name] == 1 else f"{name}-{counts[name]}"
        found.append(Plot(section, name, title, figure, note))
    return found


def _every(
    results: StudyResults, answer: Summary, unit: words.Unit
) -> Iterator[tuple[str, str, Figure, str]]:
    searched = without_repeats(results)
    shares = importance(searched)
    names = list(dict.fromkeys([*(shares or {}), *parameters_of(searched.trials)]))
    if answer.front:
        yield "front", "Pareto front", loads.front_plot(searched, answer), "As first measured."
    chance = random_search(searched, int((searched.trials["kind"] != "baseline").sum()))
    if (figure := course.convergence_plot(searched, answer, unit, chance)) is not None:
        yield "search", "Convergence", figure, convergence_note(searched, answer, unit, chance)
    for scenario, figure in loads.tradeoff_plots(searched, answer).items():
        yield "search", f"Latency and throughput, {scenario}", figure, _POINTS
    if shares:
        yield "search", "What matters", space.importance_plot(shares), _IMPORTANCE
    if (figure := course.timeline_plot(results)) is not None:
        yield "search", "Time line", figure, "When each trial ran, and how it ended; repeats come last."
    for name, load, figure in loads.distribution_plots(results, answer):
        yield "requests", name, figure, load
    for name, figure in space.effect_plots(searched, answer, unit, names).items():
        yield "effect", name, figure, ""
    for title, figure in space.pair_plots(searched, answer, unit, names).items():
        yield "pair", title, figure, words.value_label(answer, unit)
    for name, figure in space.failure_plots(searched).items():
        yield "failures", name, figure, ""


def convergence_note(
    results: StudyResults, answer: Summary, unit: words.Unit, chance: RandomSearch | None
) -> str:
    """What the search is worth beside a random one and a grid, as far as that can be told."""
    if chance is None:
        return (
            "What a random search would find cannot be told: that takes eight finished trials, and one "
            "of them within the SLOs."
        )
    tried = len(chance.scores)
    best = float(convergence(results.trials, answer.objective).iloc[-1])
    text = (
        f"Random search: what {tried} random trials of the whole space would be expected to find, "
        f"{unit.amount(float(chance.scores[-1]))} where this search found {unit.amount(best)}; an estimate "
        "by a random forest on these trials, not a measurement. "
    )
    if chance.size == float("inf"):
        return text + "A grid of this space has no end: it has a continuous parameter."
    mean_s = float(results.trials["duration_s"].mean())
    return text + (
        f"A grid would take {chance.size:,.0f} trials, about {words.duration(chance.size * mean_s)} "
        f"one after the other; this search took {tried}."
    )
