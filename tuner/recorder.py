"""What a study does when a trial ends: writes it, logs it, and tells whoever watches.

A Tune callback in the driver, the only writer of results. Tune pickles callbacks; this one leaves its
live parts behind (nothing is ever restored from Tune's own state).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial

from tuner.engines.base import Engine
from tuner.evaluate import Report, Step, scores
from tuner.failures import Cause, Failure, Stage
from tuner.report.words import config_text
from tuner.results import ResultStore
from tuner.rows import TrialInfo, record, this_node
from tuner.search import ELAPSED, Suggestion
from tuner.secrets import known, plain
from tuner.task import Task

LOG = logging.getLogger("tuner.study")


@dataclass(frozen=True)
class Place:
    """Where a trial runs."""

    trial: int
    node: str
    gpu_ids: tuple[str, ...]

    def __str__(self) -> str:
        gpus = f", GPU{'s' * (len(self.gpu_ids) > 1)} {' '.join(self.gpu_ids)}" if self.gpu_ids else ""
        return f"trial {self.trial} on {self.node}{gpus}"


@dataclass(frozen=True)
class StudyProgress:
    """A study at one moment. `best` is the row of the best trial so far, `last` that of the newest.

    `waiting` trials have no GPUs yet; `places` are those of the running ones, as far as they are known.
    """

    planned: int
    running: int
    finished: int
    failed: int
    elapsed_s: float
    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    waiting: int = 0
    places: tuple[Place, ...] = ()

    @property
    def remaining_s(self) -> float | None:
        """Seconds left if trials go on as fast as so far; None before the first has ended."""
        ended = self.finished + self.failed
        return self.elapsed_s / ended * max(self.planned - ended, 0) if ended else None


class Recorder(tune.Callback):
    """Records the trials of one study as they end."""

    def __init__(
        self,
        store: ResultStore,
        task: Task,
        engine: Engine,
        planned: Callable[[], int],
        watch: Callable[[StudyProgress], None] | None,
    ) -> None:
        self._store, self._task, self._engine, self._watch = store, task, engine, watch
        self._began = time.monotonic()
        self._planned = planned
        self._progress = StudyProgress(planned(), 0, 0, 0, 0.0)
        self._broken: Exception | None = None
        self._steps: dict[str, list[Step]] = {}
        self._last: dict[str, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def refused(self, suggestion: Suggestion, failure: Failure) -> float:
        """Records a configuration that the engine would never start; returns its loss."""
        score, *others = scores(self._task, [], failure)
        levels = len(self._task.levels(0))
        info = TrialInfo(
            number=suggestion.number,
            kind=suggestion.kind,
            config=suggestion.config,
            gpu_ids=[],
            started_at=datetime.now(UTC),
            duration_s=0.0,
            node="",
            log_path="",
        )
        self._record(info, Report(levels, 0, score, done=True, others=tuple(others), failure=failure), [])
        return score.loss

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ends the study where a result could not be written: Tune logs and forgets other exceptions."""
        if self._broken:
            raise self._broken
        self._show_queue(trials)

    def _show_queue(self, trials: list[Trial]) -> None:
        """Tells how many trials wait and where the others run, when that has changed."""
        running = [trial for trial in trials if trial.status == Trial.RUNNING]
        seen = [last["info"] for trial in running if (last := self._last.get(trial.trial_id))]
        places = tuple(Place(info.number, info.node, tuple(info.gpu_ids)) for info in seen)
        waiting = sum(trial.status == Trial.PENDING for trial in trials)
        if (waiting, places) != (self._progress.waiting, self._progress.places):
            for place in set(places) - set(self._progress.places):
                LOG.info("Running: %s", place)
            self._tell(running=len(running), waiting=waiting, places=places)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A new trial, or one that starts again after its node was lost: what it had shown is void."""
        self._steps[trial.trial_id] = []
        self._last.pop(trial.trial_id, None)
        self._tell(running=self._running(trials))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Takes the report out of the result, so that Tune neither keeps nor copies it."""
        report: Report = result.pop("report")
        if report.step is not None:
            self._steps[trial.trial_id].append(report.step)
        self._last[trial.trial_id] = {
            "report": report,
            "info": replace(result.pop("info"), duration_s=result[ELAPSED]),
        }

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Writes the trial, finished or stopped early."""
        last = self._last.pop(trial.trial_id)
        report: Report = last["report"]
        self._record(
            replace(last["info"], stopped_early=not report.done),
            report,
            self._steps.pop(trial.trial_id),
            running=self._running(trials, ended=trial),
        )

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Writes a trial that was lost to infrastructure more often than it is retried."""
        error = _last_error(trial)
        cause = Cause.NODE_LOST if isinstance(error, RayActorError) else Cause.INTERNAL
        raised = getattr(error, "cause", None) or error  # Ray wraps it in an exception of its own
        environment = known(self._task.engine.env, os.environ)
        steps = self._steps.pop(trial.trial_id, [])
        levels = len(self._task.levels(0))
        failure = Failure(
            Stage.LOAD if steps else Stage.START,
            cause,
            plain(f"{type(raised).__name__}: {raised}".splitlines()[0], environment)[:300],
            evidence=plain(str(error), environment)[-4000:],
            progress=len(steps) / levels,
        )
        score, *others = scores(self._task, [step.metrics for step in steps], failure)
        config = trial.config
        began = trial.run_metadata.start_time or time.time()
        self._record(
            TrialInfo(
                number=config["number"],
                kind=config["kind"],
                config=config["flags"],
                gpu_ids=[],
                started_at=datetime.fromtimestamp(began, UTC),
                duration_s=time.time() - began,
                node=this_node(),
                log_path="",
            ),
            Report(levels, len(steps), score, done=True, others=tuple(others), failure=failure),
            steps,
            running=self._running(trials, ended=trial),
        )

    def _running(self, trials: list[Trial], ended: Trial | None = None) -> int:
        return sum(trial.status == Trial.RUNNING for trial in trials if trial is not ended)

    def _record(self, info: TrialInfo, report: Report, steps: list[Step], running: int | None = None) -> None:
        if self._broken:
            return
        try:
            row = record(self._store, self._task, self._engine, info, report, steps)
            self._announce(info, report, row, running)
        except Exception as error:
            LOG.exception("Trial %d could not be recorded", info.number)
            self._broken = error

    def _announce(self, info: TrialInfo, report: Report, row: dict[str, Any], running: int | None) -> None:
        failure, best = report.failure, self._progress.best
        again = " (measured again)" if info.kind == "confirm" else ""
        name = f"trial {info.number}{again}: {config_text(info.config)}"
        if info.stopped_early:
            LOG.info("Stopped (losing after %d of %d load levels): %s", report.finished, report.planned, name)
        elif failure is not None:
            LOG.info("Failed (%s, %s): %s: %s", failure.stage, failure.cause, name, failure.detail)
        else:
            unit = row["objective_unit"]
            LOG.info("Finished %s: %.6g %s", name, report.score.score, unit)
            if info.kind != "confirm" and (best is None or row["loss"] < best["loss"]):
                best = row
                LOG.info("New best score: %.6g %s (%s)", report.score.score, unit, name)
        self._tell(
            running=self._progress.running if running is None else running,
            finished=self._progress.finished + (failure is None),
            failed=self._progress.failed + (failure is not None),
            best=best,
            last=row,
        )

    def _tell(self, **changes: Any) -> None:
        elapsed_s = time.monotonic() - self._began
        changes["planned"] = self._planned()
        self._progress = replace(self._progress, elapsed_s=elapsed_s, **changes)
        if self._watch:
            self._watch(self._progress)


def _last_error(trial: Trial) -> Exception | None:
    """What ended the trial. Tune's own `get_pickled_error` looks where the file is copied to only later."""
    try:
        error: Exception = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # noqa: BLE001  it may be of a class that only the worker has; recorded as unknown
        return None
    return error
