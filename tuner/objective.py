"""Metrics and SLOs in, `Score` out: the only place with a direction, a penalty or a tier.

Three numbers, never mixed: `objective` is the natural value in its own unit; `score` is the objective
with the SLO penalty applied, in the same direction; `loss` is what a sampler is told, always minimised
and always finite. Losses lie in three tiers, and inside a tier further is worse:

    finished          about −30 ... 150    ±log(objective) + log(1 + Σ penalty)
    hard SLO failure  about 950 ... 1150   1000 + what it would have been
    failed            2000 ... 2300        2000 + 100 · (3 − stage − share of load levels finished)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tuner.failures import Failure
from tuner.metrics import Metrics

HARD_SLO_TIER = 1000.0
FAILED_TIER = 2000.0
_FAILED_STAGE = 100.0
_PENALTY_CEILING = 100.0  # of log(1 + Σ penalty), so that tiers cannot meet
MEAN = "mean"
Steering = tuple[str, str]  # a latency (`latency`, `ttft` or `tpot`) and the statistic of it that decides
_SMALLEST, _LARGEST = 1e-9, 1e12  # objectives are clipped to this range before the logarithm


@dataclass(frozen=True)
class Objective:
    """What is optimised: a name as in the task file, a direction, a unit, and what it means.

    One that `counts_promises` leaves out what broke them, and is not penalised for it again.
    """

    name: str
    maximise: bool
    unit: str
    meaning: str
    counts_promises: bool = False

    def value(self, metrics: Metrics) -> float | None:
        """This objective at one load level; None where nothing was measured."""
        if self.counts_promises:
            return None if metrics.goodput is None else metrics.goodput / metrics.gpus
        if self.maximise:
            rate = metrics.output_tok_s if "output" in self.name else metrics.total_tok_s
            return rate / metrics.gpus
        distribution = getattr(metrics, self.name.removeprefix("minimize_"))
        return None if distribution is None else float(distribution.mean)

    @property
    def steered_by(self) -> Steering:
        """The latency that it hangs on: of a rate, how soon one request follows another."""
        return "latency" if self.maximise else self.name.removeprefix("minimize_"), MEAN

    def unit_on(self, gpus: int) -> str:
        """The unit of a trial on so many GPUs; none stands in the unit of an engine on the CPU."""
        return self.unit if gpus else self.unit.removesuffix("/GPU")

    def log_penalty(self, value: float, verdict: SloVerdict) -> float:
        """What the promises take off `value`; of one that counts them, only where nothing kept them.

        Then the value is zero whatever the configuration, and the penalty tells how near each came.
        """
        return 0.0 if self.counts_promises and value > 0 else verdict.log_penalty

    def better(self, a: float, b: float) -> bool:
        """Whether the value or score `a` is better than `b`."""
        return a > b if self.maximise else a < b

    def gain(self, best: float, baseline: float) -> float:
        """Share by which `best` improves on `baseline` (0.2: a fifth better; negative: worse).

        Latencies: the share that was taken off. Throughputs: the share that was added. 0 where the
        baseline is 0, for want of a measure.
        """
        if baseline == 0:
            return 0.0
        change = (best - baseline) / baseline
        return change if self.maximise else -change


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("minimize_latency", False, "s", "mean end-to-end latency of a request"),
        Objective("minimize_ttft", False, "s", "mean time to first token"),
        Objective("minimize_tpot", False, "s", "mean time per output token after the first"),
        Objective("maximize_throughput", True, "tok/s/GPU", "input and output tokens per second and GPU"),
        Objective("maximize_output_throughput", True, "tok/s/GPU", "output tokens per second and GPU"),
        Objective(
            "maximize_goodput", True, "requests/s/GPU", "requests per second and GPU that kept the SLOs", True
        ),
    )
}


@dataclass(frozen=True)
class SloTerm:
    """A promise on one statistic of one latency: `latency`, `ttft` or `tpot`; `mean`, `p50` ... `p99`.

    `threshold_s` in seconds. Over it, the penalty is weight · exp(violation/steepness) with
    violation = (actual − threshold)/threshold. With `hard_fail`, a violation above `fail_ratio` is a
    hard failure, worse than every configuration that has none.
    """

    latency: str
    statistic: str
    threshold_s: float
    weight: float = 1.0
    hard_fail: bool = False
    fail_ratio: float = 0.5

    @property
    def name(self) -> str:
        """For people: `latency p90`."""
        return f"{self.latency} {self.statistic}"

    def violation(self, metrics: Metrics) -> float:
        """(actual − threshold)/threshold, negative where the promise is kept; +inf without a measurement."""
        distribution = getattr(metrics, self.latency)
        if distribution is None:
            return math.inf
        return (float(getattr(distribution, self.statistic)) - self.threshold_s) / self.threshold_s


@dataclass(frozen=True)
class Slo:
    """All promises of a task; `steepness` is shared by their penalties."""

    terms: tuple[SloTerm, ...] = ()
    steepness: float = 0.1

    @property
    def of_each_request(self) -> dict[str, float]:
        """What a request must keep to (s), by latency, to count in the goodput: the loosest promise on it.

        A promise on the mean and one on the 99th percentile are both kept by requests between the two.
        """
        limits: dict[str, float] = {}
        for term in self.terms:
            limits[term.latency] = max(limits.get(term.latency, 0.0), term.threshold_s)
        return limits

    def judge(self, levels: Sequence[Metrics]) -> SloVerdict:
        """Every term at every load level; the worst level of each term counts."""
        worst = {term: max((term.violation(level) for level in levels), default=0.0) for term in self.terms}
        logs = [
            math.log(term.weight) + violation / self.steepness
            for term, violation in worst.items()
            if violation > 0 and term.weight > 0
        ]
        peak = max(worst, key=lambda term: worst[term], default=None)
        return SloVerdict(
            met=all(violation <= 0 for violation in worst.values()),
            hard_failed=any(term.hard_fail and worst[term] > term.fail_ratio for term in worst),
            worst=peak.name if peak else "",
            worst_violation=worst[peak] if peak else 0.0,
            log_penalty=_log1p_sum_exp(logs),
        )


@dataclass(frozen=True)
class SloVerdict:
    """Whether the promises were kept; `log_penalty` is log(1 + Σ penalty), 0 where all were."""

    met: bool
    hard_failed: bool
    worst: str
    worst_violation: float
    log_penalty: float


@dataclass(frozen=True)
class Score:
    """What a configuration is worth; `objective` and `score` are None where nothing was measured."""

    objective: float | None
    score: float | None
    loss: float
    slo: SloVerdict


def score(objective: Objective, slo: Slo, levels: Sequence[Metrics], failure: Failure | None = None) -> Score:
    """The score of a trial from its finished load levels (the objective is their mean) and its failure."""
    verdict = slo.judge(levels)
    values = [value for value in map(objective.value, levels) if value is not None]
    value = math.fsum(values) / len(values) if values else None
    penalty = verdict.log_penalty if value is None else objective.log_penalty(value, verdict)
    natural = None if value is None else _penalised(objective, value, penalty)
    if failure is not None:
        remaining = 3.0 - failure.stage.rank - min(max(failure.progress, 0.0), 1.0)
        return Score(value, natural, FAILED_TIER + _FAILED_STAGE * remaining, verdict)
    if value is None:
        raise ValueError("a trial without a failure has at least one load level with requests that succeeded")
    logarithm = math.log(min(max(value, _SMALLEST), _LARGEST))
    loss = (-logarithm if objective.maximise else logarithm) + _squashed(penalty)
    return Score(value, natural, loss + HARD_SLO_TIER if verdict.hard_failed else loss, verdict)


def _penalised(objective: Objective, value: float, log_penalty: float) -> float:
    """The objective times (or, where maximised, divided by) 1 + Σ penalty; within floats' range."""
    factor = math.exp(min(log_penalty, 600.0))
    return value / factor if objective.maximise else min(value * factor, 1e300)


def _squashed(log_penalty: float) -> float:
    """As it is up to half the ceiling, so that loss and score rank alike; beyond, ever nearer to it."""
    free = _PENALTY_CEILING / 2
    beyond = max(log_penalty - free, 0.0)
    rest = free if math.isinf(beyond) else beyond / (1 + beyond / (_PENALTY_CEILING - free))
    return min(log_penalty, free) + rest


def _log1p_sum_exp(logs: Sequence[float]) -> float:
    """log(1 + Σ exp(x)), without overflow."""
    top = max([0.0, *logs])
    if math.isinf(top):
        return math.inf
    return top + math.log(math.exp(-top) + math.fsum(math.exp(x - top) for x in logs))
