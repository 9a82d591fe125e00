"""Several studies side by side: what differs between them, what each found, and which of that compares.

Two measurements of one configuration differ by chance: from one start of an engine to the next, as repeats
tell (without any, `STARTS_DIFFER` is taken), and where the seeds differ, because the prompts do. The latter
is the same for all configurations of a study, so that many of them do not average it out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy.special import stdtrit

from tuner.analysis.answer import CONFIDENCE, STARTS_DIFFER, Summary, summary
from tuner.analysis.confirmation import deviation, runs_of
from tuner.analysis.trials import REQUEST_COLUMNS, Trial, at_levels, objective_of, objectives_of, slo_terms
from tuner.errors import ResultsError, TunerError
from tuner.objective import SloTerm
from tuner.results import StudyResults
from tuner.space import config_key
from tuner.task import make_task

_LOAD = "load"
_OF_THE_MODEL = ("model_name", "model_tokenizer")  # of `benchmark`: other models have other ones
_MUST_AGREE = ("objective", "SLOs", _LOAD, "kind of measurement")


@dataclass(frozen=True)
class Spread:
    """A value's 95 % interval, and what it is from: `repeats`, or `requests` of one run."""

    low: float
    high: float
    basis: str


@dataclass(frozen=True)
class Side:
    """One study of a comparison. `facts` are what it was asked, as text or JSON, by what they are called.

    `prompts_error` is the standard error of log(objective) that its sample of prompts brings.
    """

    results: StudyResults
    answer: Summary
    facts: Mapping[str, str]
    gpu_s: float
    prompts_error: float

    @property
    def study(self) -> str:
        """The study's name."""
        return str(self.results.about["study"])


@dataclass(frozen=True)
class Ratio:
    """`share` by which the second of two is better than the first, with its interval where it can be told.

    Negative: worse. `certain` where the interval excludes zero, or, without one, where the difference is
    beyond what starts of an engine differ by.
    """

    share: float
    low: float | None
    high: float | None
    certain: bool


@dataclass(frozen=True)
class Shared:
    """A configuration that two studies measured, with the objective in either."""

    config: Mapping[str, Any]
    first: float
    second: float
    ratio: Ratio


@dataclass(frozen=True)
class Matched:
    """Two studies, by their places: which best is better, what they measured both, and that on average.

    `obstacles` are why they do not compare; then all else is empty.
    """

    first: int
    second: int
    obstacles: tuple[str, ...]
    best: Ratio | None = None
    shared: tuple[Shared, ...] = ()
    overall: Ratio | None = None


@dataclass(frozen=True)
class Comparison:
    """Studies side by side, with every two of them matched."""

    sides: tuple[Side, ...]
    differences: Mapping[str, tuple[str, ...]]
    matches: tuple[Matched, ...]


def compare(studies: Sequence[StudyResults]) -> Comparison:
    """What the studies have in common and what not. ResultsError for fewer than two, or none of the kind."""
    if len(studies) < 2:
        raise ResultsError("a comparison takes two studies or more")
    for each in studies:
        if each.about.get("kind") == "bench":
            raise ResultsError(f"{each.about['study']} is of `tuner bench`, and no study")
    sides = tuple(_side(each) for each in studies)
    names = list(dict.fromkeys(name for side in sides for name in side.facts))
    told = {name: tuple(side.facts.get(name, "–") for side in sides) for name in names}
    differences = {name: values for name, values in told.items() if len(set(values)) > 1}
    pairs = combinations(range(len(sides)), 2)
    return Comparison(sides, differences, tuple(_matched(sides, one, two) for one, two in pairs))


def _side(results: StudyResults) -> Side:
    trials = results.trials
    gpu_s = float((trials["duration_s"].fillna(0.0) * trials["gpus"].fillna(0)).sum())
    answer = summary(results)
    return Side(results, answer, dict(_facts(results)), gpu_s, _prompts_error(results, answer.best))


def _prompts_error(results: StudyResults, trial: Trial | None) -> float:
    """From how the latencies of one trial's requests differ; 0 where nothing tells.

    The objective is a mean over load levels, so that each counts by its share of the sum; a rate is off by
    the same share as the mean latency that it hangs on.
    """
    if trial is None:
        return 0.0
    column = REQUEST_COLUMNS[objective_of(results).steered_by[0]]
    requests = results.requests[results.requests["error"].isna()]
    requests = requests[requests["trial"] == trial["trial"]]
    levels = requests.groupby("step")[column]
    errors = (levels.sem() / levels.mean()).dropna()
    values = at_levels(results, trial)
    weights = np.array([values.get(step, 0.0) for step in errors.index])
    total = float(weights.sum())
    return math.sqrt(float(((weights * errors) ** 2).sum())) / total if total > 0 else 0.0


def _facts(results: StudyResults) -> Iterator[tuple[str, str]]:
    """What a study was asked and what answered, with the defaults of its task written out."""
    about = results.about
    try:
        task = make_task(about["task"], str(about["study"])).model_dump(mode="json")
    except (TunerError, RecursionError):
        task = about["task"]
    yield "model", str(task.get("model", {}).get("id_or_path", "?"))
    yield "engine", str(about.get("engine", "?"))
    yield "engine version", str(about.get("engine_version") or "?")
    yield "GPU", ", ".join(sorted({str(gpu) for gpu in results.trials["gpu_model"].dropna()})) or "not known"
    virtual = "simulated in virtual time" if about.get("virtual") else "simulated"
    yield "kind of measurement", virtual if about.get("simulated") else "measured"
    yield "objective", ", ".join(each.name for each in objectives_of(results))
    yield "SLOs", "; ".join(map(_promise, slo_terms(results))) or "none"
    for name, value in (task.get("benchmark") or {}).items():
        if name in _OF_THE_MODEL:
            yield name, _text(value)
        else:
            yield f"{_LOAD}: {name}", _text(value)
    for name, value in (task.get("parameters") or {}).items():
        yield f"space: {name}", _text(value)
    yield "space: constraints", _text(task.get("constraints"))
    yield "engine's fixed arguments", _text((task.get("engine") or {}).get("args"))
    yield "prompts", f"of seed {about.get('seed')}"


def _promise(term: SloTerm) -> str:
    return f"{term.name} {term.threshold_s:g} s{' (hard)' if term.hard_fail else ''}"


def _text(value: Any) -> str:
    return "–" if value is None or value in ([], {}) else json.dumps(value, ensure_ascii=False, default=str)


def _matched(sides: Sequence[Side], one: int, two: int) -> Matched:
    first, second = sides[one], sides[two]
    obstacles = tuple(_obstacles(first, second))
    if obstacles:
        return Matched(one, two, obstacles)
    judge = _Judge(first, second)
    runs = judge.runs
    best = None
    if first.answer.best is not None and second.answer.best is not None:
        bests = [_best_runs(side, own) for side, own in zip((first, second), runs, strict=True)]
        best = judge.ratio(bests[0], bests[1]) if all(bests) else None
    if first.facts["engine"] != second.facts["engine"]:  # the same flag need not be the same thing
        return Matched(one, two, (), best)
    return Matched(one, two, (), best, *_in_common(judge))


def _obstacles(first: Side, second: Side) -> Iterator[str]:
    """What two studies must have in common for their figures to compare, and have not."""
    names = dict.fromkeys([*first.facts, *second.facts])
    for name in names:
        if name.partition(":")[0] in _MUST_AGREE and first.facts.get(name) != second.facts.get(name):
            yield f"{name}: {first.facts.get(name, '–')} and {second.facts.get(name, '–')}"


def _best_runs(side: Side, runs: Mapping[str, list[Trial]]) -> list[Trial]:
    """The runs that tell of a study's best: its repeats, since the first was chosen for its luck.

    None of them where its objective is zero, as nothing kept the SLOs: that has no ratio to any other.
    """
    assert side.answer.best is not None
    own = runs.get(config_key(side.answer.best["config"]), [])
    return [trial for trial in own if trial["kind"] != "search"] or own


class _Judge:
    """Says by how much one of two studies is better, with all that their runs may differ by chance."""

    def __init__(self, first: Side, second: Side) -> None:
        self.runs = [runs_of(side.results) for side in (first, second)]
        self._objective = objective_of(first.results)
        self._noise = deviation([own for runs in self.runs for own in runs.values()])
        other_prompts = first.facts["prompts"] != second.facts["prompts"]
        self._prompts = math.hypot(first.prompts_error, second.prompts_error) if other_prompts else 0.0

    def ratio(self, one: Sequence[Trial], two: Sequence[Trial], among: int = 1) -> Ratio:
        """Of the second's mean to the first's, with an interval that holds for `among` of them at once."""
        half = None
        if self._noise is not None:
            error, freedom = self._noise
            wide = float(stdtrit(freedom, 1 - (1 - CONFIDENCE) / (2 * among)))
            half = wide * error * math.sqrt(1 / len(one) + 1 / len(two))
        return self.of_gap(_mean(two) - _mean(one), half)

    def of_gap(self, gap: float, half: float | None) -> Ratio:
        """Of a difference of log(objective), and the half width of its interval but for the prompts."""
        prompts = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * self._prompts
        share = self._objective.gain(math.exp(gap), 1.0)
        if half is None:
            return Ratio(share, None, None, abs(gap) > math.hypot(STARTS_DIFFER, prompts))
        whole = math.hypot(half, prompts)
        ends = sorted(self._objective.gain(math.exp(gap + end), 1.0) for end in (-whole, whole))
        return Ratio(share, ends[0], ends[1], abs(gap) > whole)


def _in_common(judge: _Judge) -> tuple[tuple[Shared, ...], Ratio | None]:
    """What both measured, the first's best first, and the average.

    The intervals of single configurations hold for all of them at once (Bonferroni). That of the average
    is Student's, of the differences of log(objective), which holds whatever runs differ by.
    """
    one, two = judge.runs
    keys = sorted(one.keys() & two.keys(), key=lambda key: one[key][0]["loss"])
    if not keys:
        return (), None
    shared = []
    for key in keys:
        first, second = (math.exp(_mean(runs[key])) for runs in (one, two))
        ratio = judge.ratio(one[key], two[key], among=len(keys))
        shared.append(Shared(one[key][0]["config"], first, second, ratio))
    gaps = np.array([_mean(two[key]) - _mean(one[key]) for key in keys])
    half = None
    if len(gaps) > 1:
        wide = float(stdtrit(len(gaps) - 1, (1 + CONFIDENCE) / 2))
        half = wide * float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    return tuple(shared), judge.of_gap(float(gaps.mean()), half)


def _mean(runs: Sequence[Trial]) -> float:
    return float(np.mean([math.log(trial["objective"]) for trial in runs]))


def spread(side: Side, trial: Trial | None) -> Spread | None:
    """The 95 % interval of a trial's objective; None where it cannot be told.

    From the repeats of all of the study's configurations, pooled; without any, for a latency, from the
    spread between the requests of one run, which starts of the engine add to.
    """
    if trial is None:
        return None
    runs = runs_of(side.results)
    own = runs.get(config_key(trial["config"]), [])
    noise = deviation(list(runs.values()))
    value = float(trial["objective"])
    if noise is not None and own:
        repeats = [run for run in own if run["kind"] == "confirm"] or own
        error, freedom = noise
        wide = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error / math.sqrt(len(repeats))
        return Spread(value * math.exp(-wide), value * math.exp(wide), "repeats")
    objective = objective_of(side.results)
    column = f"{objective.steered_by[0]}_ci95_s"
    steps = side.results.steps[side.results.steps["trial"] == trial["trial"]]
    if objective.maximise or steps.empty or steps[column].isna().any():
        return None
    half = math.sqrt(float((steps[column] ** 2).sum())) / len(steps)
    return Spread(value - half, value + half, "requests")
