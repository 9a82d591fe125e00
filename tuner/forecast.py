"""`tuner predict`: what the simulator expects of a task's space, as lines of text and as a document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.engines.simulator.flags import effect_of
from tuner.errors import UsageError
from tuner.experience import some_of
from tuner.predict import Prediction, predict_all
from tuner.report.words import config_text, digits, percent
from tuner.rig import SIMULATED_FLAGS, calibrated, with_args
from tuner.task import Task

_MOST_REASONS = 3


@dataclass(frozen=True)
class Forecast:
    """The `best` configurations of the `evaluated` ones, the engine's `defaults`, and what has no effect.

    `gain` is a share, in score over the defaults; None where either would not run. `why` has the commonest
    reasons for which configurations would not run.
    """

    task: Task
    evaluated: int
    best: Sequence[Prediction]
    defaults: Prediction
    without_effect: Sequence[str]
    gain: float | None
    why: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        """For machines."""
        return {
            **{"predicted": True, "task": self.task.task_name, "objective": self.task.objective.name},
            **{"evaluated": self.evaluated, "without_effect": self.without_effect, "gain": self.gain},
            **{"best": [_row(one) for one in self.best], "defaults": _row(self.defaults)},
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        objective = self.task.objective
        yield (
            f"PREDICTED by the simulator, not measured: {objective.name} ({objective.unit}) "
            f"of {self.evaluated} configurations"
        )
        for one in [*self.best, self.defaults]:
            value = digits(one.score.objective) if one.score.objective is not None else "would not run"
            yield f"{value:>14}  {config_text(one.config)}"
        if self.gain is not None:
            yield self._gain_text(self.gain)
        if not self.best:
            yield f"None of them would run: {'; '.join(self.why)}"
        if self.without_effect:
            yield f"Not modelled, all values predicted alike: {', '.join(self.without_effect)}"

    def _gain_text(self, gain: float) -> str:
        """The gain as a person reads it: penalties that grow exponentially are none of it."""
        best, defaults = self.best[0].score, self.defaults.score
        if best.slo.met and defaults.slo.met:
            return f"Predicted gain over the defaults: {percent(gain)}"
        assert best.objective is not None and defaults.objective is not None
        value = percent(self.task.objective.gain(best.objective, defaults.objective))
        kept = ["break", "keep"]
        promises = (
            f"the best would {kept[best.slo.met]} the promises, the defaults {kept[defaults.slo.met]} them"
        )
        return f"Predicted gain over the defaults: {value}; {promises}"


def forecast(
    task: Task, *, gpu: str | None, top: int, seed: int, calibration: str | Path | None = None
) -> Forecast:
    """The `top` best of the space, on `gpu` in place of the task's; UsageError where it cannot be told.

    `calibration` is a file of `tuner calibrate`.
    """
    if task.base_runtime not in SIMULATED_FLAGS:
        raise UsageError(f"predict knows SGLang's flags, not those of {task.base_runtime}")
    if calibration is not None:
        task = calibrated(task, calibration)
    if gpu is not None:
        task = with_args(task, {**task.engine.args, "gpu": gpu})
    [defaults] = predict_all(task, [{}], seed)
    found = predict_all(task, some_of(task.space, seed), seed)
    best = [one for one in found if one.starts][:top]
    without_effect = [flag for flag in (*task.engine.args, *task.space.domains) if not effect_of(flag)]
    reasons = Counter(one.failure for one in found if one.failure)
    why = [reason for reason, _ in reasons.most_common(_MOST_REASONS)]
    return Forecast(task, len(found), best, defaults, without_effect, _gain(task, best, defaults), why)


def _gain(task: Task, best: Sequence[Prediction], defaults: Prediction) -> float | None:
    if not best or not defaults.starts:
        return None
    ours, theirs = best[0].score.score, defaults.score.score
    return None if ours is None or theirs is None else task.objective.gain(ours, theirs)


def _row(one: Prediction) -> dict[str, Any]:
    kept = {"objective": one.score.objective, "score": one.score.score}
    return {"config": dict(one.config), "starts": one.starts, **kept}
