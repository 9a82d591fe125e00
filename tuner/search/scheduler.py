"""The Tune scheduler of a study: it stops trials that are clearly losing, and learns from all others."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tuner.objective import HARD_SLO_TIER
from tuner.stopping import EarlyStopping
from tuner.suggestion import METRIC, PLACED, SHARE


class LosingTrials(FIFOScheduler):
    """Stops a trial of the search once it will hardly become the best; never the baseline or a repeat."""

    def __init__(self, stopping: EarlyStopping) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's is untyped
        self._stopping = stopping
        self._curves: dict[str, dict[float, float]] = {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """STOP for a trial that is losing."""
        if PLACED in result:
            return str(TrialScheduler.CONTINUE)
        share, loss = float(result[SHARE]), float(result[METRIC])
        self._curves.setdefault(trial.trial_id, {})[share] = loss
        losing = trial.config["kind"] == "search" and self._stopping.hopeless(share, loss)
        return str(TrialScheduler.STOP if losing else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Learns how a trial went on that was seen to its end."""
        curve, loss = self._curves.pop(trial.trial_id, {}), float(result[METRIC])
        if result[SHARE] >= 1 and loss < HARD_SLO_TIER / 2:
            self._stopping.finished({**curve, 1.0: loss})

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Forgets a trial that was lost: it starts again, or is given up."""
        self._curves.pop(trial.trial_id, None)
