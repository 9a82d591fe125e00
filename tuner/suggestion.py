"""A trial as the search and Tune pass it on: a suggestion out, the keys of its results back."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.space import Value, config_key

METRIC, MODE = "loss", "min"
SHARE, ELAPSED = "share", "elapsed_s"  # of a result: how much of the trial's load is done, and in what time
PLACED = "placed"  # of a trial's first result, which measures nothing: the id of its node
ATTEMPTS = 3  # at a trial that infrastructure takes away

Config = dict[str, Value]
Losses = dict[str, float]  # by metric: the loss of each objective


def metric_names(objectives: int) -> tuple[str, ...]:
    """The names of the losses in a result, one for each objective."""
    return (METRIC, *(f"{METRIC}_{number}" for number in range(2, objectives + 1)))


@dataclass(frozen=True)
class Suggestion:
    """A trial to run: its number within the study, its kind ("baseline", "search", "confirm"), its flags.

    `attempt` counts from 1; every further one follows a trial that was lost, and avoids where it was.
    `expected_gain` is what the sampler expects of it, a share of the objective, where it says so.
    """

    number: int
    kind: str
    config: Config
    attempt: int = 1
    expected_gain: float | None = None

    @property
    def key(self) -> str:
        return config_key(self.config)
