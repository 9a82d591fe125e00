"""`tuner predict`: what the simulator expects of a task's space, as lines of text and as a document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.analysis.front import from_the_knee
from tuner.engines.simulator.flags import effect_of
from tuner.errors import UsageError
from tuner.experience import some_of
from tuner.objective import Score
from tuner.predict import Prediction, predict_all
from tuner.report.words import config_text, display_unit, percent
from tuner.rig import SIMULATED_FLAGS, calibrated, with_args
from tuner.task import Task

_MOST_REASONS = 3


@dataclass(frozen=True)
class Forecast:
    """The `best` configurations of the `evaluated` ones, the engine's `defaults`, and what has no effect.

    Of several objectives the best are the Pareto front, from its knee on. `gain` is a share, in score of the
    first objective over the defaults; None where either would not run. `why` has the commonest reasons for
    which configurations would not run.
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
            "best": [self._row(one) for one in self.best],
            "defaults": self._row(self.defaults),
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        objectives = self.task.objectives
        units = [display_unit(objective) for objective in objectives]
        heads = ", ".join(f"{each.name} ({unit.name})" for each, unit in zip(objectives, units, strict=True))
        front = ", the Pareto front from its knee on" if len(objectives) > 1 else ""
        yield (f"PREDICTED by the simulator, not measured: {heads} of {self.evaluated} configurations{front}")
        for one in [*self.best, self.defaults]:
            values = [
                unit.number(score.objective)
                for unit, score in zip(units, one.scores, strict=False)
                if score.objective is not None
            ]
            text = "".join(f"{value:>14}" for value in values or ["would not run"])
            yield f"{text}  {config_text(one.config)}"
        if self.gain is not None:
            yield self._gain_text()
        if not self.best:
            yield f"None of them would run: {'; '.join(self.why)}"
        if self.without_effect:
            yield f"Not modelled, all values predicted alike: {', '.join(self.without_effect)}"

    def _gain_text(self) -> str:
        """The gain as a person reads it: penalties that grow exponentially are none of it."""
        best, defaults = self.best[0], self.defaults
        if best.score.slo.met and defaults.score.slo.met:
            promises, gains = "", self._gains(lambda score: score.score)
        else:
            kept = ["break", "keep"]
            ours, theirs = kept[best.score.slo.met], kept[defaults.score.slo.met]
            promises = f"; the best would {ours} the promises, the defaults {theirs} them"
            gains = self._gains(lambda score: score.objective)
        texts = [f"{name} {percent(gain)}" if best.others else percent(gain) for name, gain in gains.items()]
        return f"Predicted gain over the defaults: {', '.join(texts)}{promises}"

    def _gains(self, value_of: Callable[[Score], float | None]) -> dict[str, float]:
        """By objective, the share by which the first of the best improves on the defaults."""
        gains = {}
        pairs = zip(self.task.objectives, self.best[0].scores, self.defaults.scores, strict=True)
        for objective, *scores in pairs:
            ours, theirs = map(value_of, scores)
            if ours is not None and theirs is not None:
                gains[objective.name] = objective.gain(ours, theirs)
        return gains

    def _row(self, one: Prediction) -> dict[str, Any]:
        names = [objective.name for objective in self.task.objectives]
        every = {
            name: {"objective": score.objective, "score": score.score}
            for name, score in zip(names, one.scores, strict=False)
        }
        row = {"config": dict(one.config), "starts": one.starts, **every[names[0]]}
        return {**row, "objectives": every} if len(names) > 1 else row


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
    best = _best(found)[:top]
    without_effect = [flag for flag in (*task.engine.args, *task.space.domains) if not effect_of(flag)]
    reasons = Counter(one.failure for one in found if one.failure)
    why = [reason for reason, _ in reasons.most_common(_MOST_REASONS)]
    return Forecast(task, len(found), best, defaults, without_effect, _gain(task, best, defaults), why)


def _best(found: Sequence[Prediction]) -> list[Prediction]:
    """Those that would run, the best first; of several objectives, their front."""
    running = [one for one in found if one.starts]
    if not any(one.others for one in running):
        return running
    return [
        running[place] for place in from_the_knee([[each.loss for each in one.scores] for one in running])
    ]


def _gain(task: Task, best: Sequence[Prediction], defaults: Prediction) -> float | None:
    if not best or not defaults.starts:
        return None
    ours, theirs = best[0].score.score, defaults.score.score
    return None if ours is None or theirs is None else task.objective.gain(ours, theirs)
