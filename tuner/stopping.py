"""When to stop a trial that is clearly losing, and when to end a search: pure rules that know no Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit

# On eleven measured surfaces searches take 21 of 30 trials so, and 1 in 200 misses what it would have found;
# with 6 in a row 20 trials, and 3 in 100, with 8 22 trials, and none of 220.
IN_A_ROW = 7
LEAST_TRIALS = 5  # that were seen to their end, before any is stopped
_CONFIDENCE = 0.975  # that a trial which is stopped would not have become the best
_LEAST_SPREAD = 0.02  # of what is still to come: one start differs from the next by so much


@dataclass
class EarlyStopping:
    """Tells from a trial's first load levels how it will end, by the trials that were seen to theirs.

    A trial's loss so far differs from its final one, for its later load levels are harder, by an amount
    that is much the same in every trial. Losses are logarithms, so the amount is a ratio. `curves` holds
    for each trial that was seen to its end the loss at each share of its load, 1.0 being all of it.

    Of 254 real runs that were cut short (benchmarks/early_stopping.py), this spares 72 % of
    the time of those that lose, and loses no best.
    """

    curves: list[Mapping[float, float]] = field(default_factory=list)
    best: float = math.inf

    def finished(self, curve: Mapping[float, float]) -> None:
        """Learns from a trial that was seen to its end."""
        self.curves.append(dict(curve))
        self.best = min(self.best, curve[1.0])

    def expected(self, share: float, loss: float) -> tuple[float, float] | None:
        """The final loss of a trial that stands at `loss` after `share` of its load, and the lowest likely.

        The lowest is the one-sided prediction bound of Student's t for one further observation. None
        where too few trials were seen to their end.
        """
        changes = np.array([curve[1.0] - curve[share] for curve in self.curves if share in curve])
        if len(changes) < LEAST_TRIALS:
            return None
        mean, spread = float(changes.mean()), max(float(changes.std(ddof=1)), _LEAST_SPREAD)
        quantile = float(stdtrit(len(changes) - 1, _CONFIDENCE))
        return loss + mean, loss + mean - quantile * spread * math.sqrt(1 + 1 / len(changes))

    def hopeless(self, share: float, loss: float) -> bool:
        """Whether the trial will hardly become the best."""
        found = self.expected(share, loss)
        return found is not None and found[1] > self.best


@dataclass
class SearchEnd:
    """Says why a search ends before its last trial: nothing more to gain, or a budget that is spent.

    `patience` trials in a row without a loss that is lower by `least_gain` (a logarithm, so a share) are
    too many; so are `IN_A_ROW` of which the sampler expects less than `least_gain`. `max_time_s` is of the
    clock, `max_gpu_hours` of what the trials held their GPUs for; both leave room for `repeats` more trials.
    None switches a rule off.
    """

    patience: int | None = None
    least_gain: float | None = None
    max_time_s: float | None = None
    max_gpu_hours: float | None = None
    repeats: int = 0
    clock: Callable[[], float] = time.monotonic
    _began: float | None = None
    _best: float = math.inf
    _idle: int = 0
    _at_once: int = 1
    _gains: list[float] = field(default_factory=list)
    _gpu_s: list[float] = field(default_factory=list)
    _durations: list[float] = field(default_factory=list)

    def began(self) -> None:
        """The first trial starts."""
        self._began = self.clock() if self._began is None else self._began

    def resumed(self, elapsed_s: float) -> None:
        """The search goes on that has taken so many seconds before."""
        self._began = self.clock() - elapsed_s

    def ended(self, loss: float, *, gpus: int, duration_s: float) -> None:
        """A trial of the search has ended."""
        if loss < self._best - (self.least_gain or 0.0):  # small steps add up, until they count
            self._idle, self._best = 0, loss
        else:
            self._idle += 1
        self.took(gpus=gpus, duration_s=duration_s)

    def took(self, *, gpus: int, duration_s: float) -> None:
        """What a trial cost, be it of the search or a repeat."""
        self._durations.append(duration_s)
        self._gpu_s.append(gpus * duration_s)

    def expects(self, gain: float | None) -> None:
        """What the sampler expects of the next trial, as a share of the objective."""
        if gain is not None:
            self._gains.append(gain)

    def affords(self, ahead: int) -> bool:
        """Whether the budgets leave room for `ahead` trials as long as the longest, one of them now."""
        if not self._durations:
            return True
        return not self._spent(max(self._durations), ahead * max(self._gpu_s))

    def reason(self, running: int = 0, at_once: int = 1) -> str:
        """Why no further trial is worth starting beside those `running`, or waiting; empty while one is.

        `at_once` trials run then: as many as ever did are taken to run side by side when they are repeated.
        """
        self._at_once = max(self._at_once, at_once)
        in_turn, ahead = 1 + math.ceil(self.repeats / self._at_once), 1 + self.repeats
        if spent := self._spent(in_turn * _mean(self._durations), (ahead + running) * _mean(self._gpu_s)):
            return spent
        if self.patience is not None and self._idle >= self.patience:
            return f"no better configuration in {self._idle} trials"
        little = self._gains[-IN_A_ROW:]
        if self.least_gain is not None and len(little) == IN_A_ROW and max(little) < self.least_gain:
            return f"the next trial is expected to gain less than {100 * self.least_gain:g} %"
        return ""

    def _spent(self, ahead_s: float, ahead_gpu_s: float) -> str:
        """Which budget is passed by what is ahead; empty where none."""
        on_the_clock_s = 0.0 if self._began is None else self.clock() - self._began + ahead_s
        if self.max_time_s is not None and on_the_clock_s > self.max_time_s:
            return f"another trial would pass optimization.max_time ({self.max_time_s:g} s)"
        if self.max_gpu_hours is not None and sum(self._gpu_s) + ahead_gpu_s > 3600 * self.max_gpu_hours:
            return f"another trial would pass optimization.max_gpu_hours ({self.max_gpu_hours:g})"
        return ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
