"""Fits the constants of the cost model to measured runs, and says how far off it is where it was not fitted.

A run is simulated once and its steps are kept; with other constants they are timed again, in the same order,
which costs next to nothing. Of a closed loop whose requests are bounded by number that is exact; where time
bounds it or requests come at a rate, the order may change, and the run is to be simulated again. Needs numpy
and scipy: the server never imports this.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from tuner.engines.simulator.constants import FITTED_NAMES, MOST, Constants
from tuner.engines.simulator.cost import Parts, seconds

WEIGHTS = {"e2e": 1.0, "tpot": 0.7, "ttft": 0.25}  # TTFT tells least: it hangs on how arrivals synchronise
LARGE = 0.05  # of errors larger than this share, the absolute value counts, not the square
PRIOR_SD = 0.25  # of the logarithm of a constant: a guess, which a dozen runs outweigh

# What was guessed of the constants before any row was seen: where cross-validation starts.
GUESS = Constants(
    gemm=0.6,
    fp8_gemm=1.0,
    memory=0.8,
    allreduce_s=12e-6,
    prefill_layer_s=0.1e-3,
    decode_s=1e-3,
    request_s=15e-6,
)

Trace = Sequence[tuple[float, Parts]]  # steps: when each began, in seconds, and what it consisted of


@dataclass(frozen=True)
class Latencies:
    """Means over requests, in seconds; None where it was not measured."""

    ttft: float | None
    tpot: float | None
    e2e: float | None


@dataclass(frozen=True)
class Run:
    """What was measured of a load, and its simulation: the steps, and when requests were sent and ended.

    `edges` are the beginnings and ends of steps in turn, `requests` has for each request when it was sent,
    its first and its last token, and its tokens. `labels` are the caller's.
    """

    measured: Latencies
    labels: dict[str, Any]
    edges: np.ndarray
    parts: Parts
    requests: np.ndarray

    @classmethod
    def of(
        cls,
        trace: Trace,
        requests: Iterable[tuple[float, float, float, int]],
        constants: Constants,
        measured: Latencies,
        **labels: Any,
    ) -> Run:
        """From a trace that was simulated with `constants`, without noise."""
        begins = np.array([begin for begin, _ in trace])
        parts = Parts(*(np.array(values, dtype=float) for values in zip(*(p for _, p in trace), strict=True)))
        ends = begins + seconds(parts, constants, np.maximum)
        edges = np.column_stack((begins, ends)).ravel()
        return cls(measured, labels, edges, parts, np.array(list(requests), dtype=float))

    def simulated(self, constants: Constants) -> Latencies:
        """The means with other constants: steps take another time, the pauses between them the same."""
        took = seconds(self.parts, constants, np.maximum)
        spans = np.diff(self.edges, prepend=self.edges[0])
        spans[1::2] = took
        sent, first, last, tokens = self.requests.T
        sent, first, last = (np.interp(at, self.edges, np.cumsum(spans)) for at in (sent, first, last))
        tpot = (last - first) / np.maximum(tokens - 1, 1)
        return Latencies(float((first - sent).mean()), float(tpot.mean()), float((last - sent).mean()))

    def errors(self, constants: Constants) -> dict[str, float]:
        """Simulated over measured, less 1, of each latency that was measured."""
        simulated, measured = asdict(self.simulated(constants)), asdict(self.measured)
        return {name: simulated[name] / value - 1 for name, value in measured.items() if value}


def fit(
    runs: Sequence[Run],
    start: Constants,
    names: Sequence[str] = FITTED_NAMES,
    *,
    sd: float = PRIOR_SD,
) -> Constants:
    """The constants `names` that match `runs` best; a prior of width `sd` holds what they do not tell."""
    before = np.array([getattr(start, name) for name in names])

    def constants(logs: np.ndarray) -> Constants:
        return replace(start, **dict(zip(names, map(float, before * np.exp(logs)), strict=True)))

    def residuals(logs: np.ndarray) -> np.ndarray:
        now = constants(logs)
        found = [WEIGHTS[name] * math.log1p(error) for run in runs for name, error in run.errors(now).items()]
        size = np.abs(found) / LARGE
        return np.concatenate((np.sqrt(2 * (np.sqrt(1 + size**2) - 1)), 0.5 * logs / sd))

    highest = np.minimum(np.log([MOST[name] for name in names]) - np.log(before), 5.0)
    solved = least_squares(
        residuals, np.minimum(0.0, highest - 1e-3), bounds=(-5.0, highest), diff_step=1e-3, max_nfev=40
    )
    return constants(solved.x)


def held_out(
    runs: Sequence[Run], folds: Sequence[Any], start: Constants, *, sd: float = PRIOR_SD
) -> list[dict[str, float]]:
    """The errors of each run with constants that were fitted to the runs of all other folds."""
    fitted = {
        fold: fit([run for run, other in zip(runs, folds, strict=True) if other != fold], start, sd=sd)
        for fold in dict.fromkeys(folds)
    }
    return [run.errors(fitted[fold]) for run, fold in zip(runs, folds, strict=True)]


def mean_errors(errors: Iterable[dict[str, float]]) -> dict[str, float]:
    """Mean absolute errors, as shares."""
    listed = list(errors)
    names = [name for name in WEIGHTS if any(name in each for each in listed)]
    return {name: float(np.mean([abs(each[name]) for each in listed if name in each])) for name in names}
