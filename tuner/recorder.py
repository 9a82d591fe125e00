"""What a study does when a trial ends: writes it, logs it, and tells whoever watches.

A trial that infrastructure took away is written only when it is given up; before that it runs again.

A Tune callback in the driver, the only writer of results. Tune pickles callbacks; this one leaves its
live parts behind (nothing is ever restored from Tune's own state).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial

from tuner.capacity import LOST_IN_A_ROW, Capacity
from tuner.engines.base import Engine
from tuner.errors import InfrastructureLost, ResultsError
from tuner.evaluate import Report, scores
from tuner.failures import Cause, Failure, Stage
from tuner.levels import levels_of
from tuner.measure import Step
from tuner.past import Past
from tuner.progress import Place, StudyProgress
from tuner.report.words import config_text
from tuner.results import ResultStore
from tuner.rows import TrialInfo, record
from tuner.secrets import known, plain
from tuner.suggestion import ATTEMPTS, ELAPSED, METRIC, PLACED, SHARE, Suggestion
from tuner.task import Task

LOG = logging.getLogger("tuner.study")
PATIENCE_S = 300.0  # that a study waits for a node, or for results that can be written again
TRIED_AGAIN_S = 5.0
GIVEN_UP_IN_A_ROW = 3  # trials that infrastructure took away for good: then the study ends


class Recorder(tune.Callback):
    """Records the trials of one study as they end."""

    def __init__(
        self,
        store: ResultStore,
        task: Task,
        engine: Engine,
        capacity: Capacity,
        planned: Callable[[], int],
        ended_early: Callable[[], str],
        watch: Callable[[StudyProgress], None] | None,
        past: Past | None = None,
    ) -> None:
        self._store, self._task, self._engine, self._watch = store, task, engine, watch
        self._capacity, self._planned, self._ended_early = capacity, planned, ended_early
        self._levels = levels_of(task, seed=0).most
        self._began = time.monotonic()
        self._progress = StudyProgress(planned(), 0, 0, 0, 0.0)
        if past:
            ended = past.finished + past.failed
            self._progress = StudyProgress(
                planned(), 0, past.finished, past.failed, 0.0, best=past.best, before=ended
            )
        self._broken: Exception | None = None
        self._steps: dict[str, list[Step]] = {}
        self._last: dict[str, _Seen] = {}
        self._lost: dict[int, list[str]] = {}  # by number: what became of the attempts that were lost
        self._given_up: list[str] = []  # in a row, without a trial that came to its own end
        self._named: list[str] = []  # the nodes that are left out
        self._end_named = bool(past and past.ended_early)
        self._waiting_since: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def refused(self, suggestion: Suggestion, failure: Failure) -> float:
        """Records a configuration that the engine would never start; returns its loss."""
        score, *others = scores(self._task, [], failure)
        info = _unplaced(suggestion, datetime.now(UTC), attempts=0)
        report = Report(self._levels, 0, score, done=True, others=tuple(others), failure=failure)
        self._record(info, report, [])
        return score.loss

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ends the study where it cannot go on: Tune logs and forgets exceptions of other callbacks."""
        if self._broken:
            raise self._broken
        self._name_left_out()
        self.name_end()
        self._require_nodes(trials)
        self._show_queue(trials)

    def _name_left_out(self) -> None:
        """Says once of each node that no further trial is sent to it, and why."""
        for name in list(self._capacity.left_out.values())[len(self._named) :]:
            self._named.append(name)
            LOG.warning("Node %s is left out from now on: it lost %d trials in a row", name, LOST_IN_A_ROW)
            self._store.amend(nodes_left_out=self._named)

    def name_end(self) -> None:
        """Says once why the search has ended early: a study that goes on has its repeats left, no search."""
        if not self._end_named and (why := self._ended_early()):
            self._end_named = True
            LOG.info("Study %s: the search has ended early: %s", self._store.study, why)
            self._store.amend(ended_early=why)

    def _require_nodes(self, trials: list[Trial]) -> None:
        """Waits for nodes that can hold what is due, and raises where none comes."""
        needs = [self._asked(each.config) for each in trials if each.status == Trial.PENDING]
        running, largest = self._running(trials), self._capacity.largest
        if running or not needs or min(needs) <= largest:
            self._waiting_since = None
            if self._progress.trouble:
                self._tell(trouble="")
            return
        unit = "GPUs" if self._capacity.counts_gpus else "CPUs"
        what = f"a trial needs {min(needs):g} {unit} on one node, and the largest left has {largest:g}"
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
            LOG.warning("Waiting for a node: %s", what)
            self._tell(trouble=f"waiting for a node: {what}")
        elif time.monotonic() - self._waiting_since > PATIENCE_S:
            raise InfrastructureLost(f"{what}; none came in {PATIENCE_S:g} s")

    def _asked(self, config: dict[str, Any]) -> float:
        """What a trial was to hold when it was handed out: then it may have been of larger nodes' CPUs."""
        capacity = self._capacity
        return capacity.needs(config["flags"]) if capacity.counts_gpus else float(config["cpus"])

    def _show_queue(self, trials: list[Trial]) -> None:
        """Tells how many trials wait and where the others run, when that has changed."""
        running = [trial for trial in trials if trial.status == Trial.RUNNING]
        seen = [seen.info for trial in running if (seen := self._last.get(trial.trial_id))]
        places = tuple(Place(info.number, info.node, tuple(info.gpu_ids)) for info in seen if info)
        waiting = sum(trial.status == Trial.PENDING for trial in trials)
        if (waiting, places) != (self._progress.waiting, self._progress.places):
            for place in set(places) - set(self._progress.places):
                LOG.info("Running: %s", place)
            self._tell(running=len(running), waiting=waiting, places=places)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A new trial, or another attempt at one that was lost."""
        self._steps[trial.trial_id] = []
        self._last[trial.trial_id] = _Seen()
        self._tell(running=self._running(trials))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Takes the report out of the result, so that Tune neither keeps nor copies it."""
        seen = self._last[trial.trial_id]
        seen.info = result.pop("info")
        if PLACED in result:
            return
        report: Report = result.pop("report")
        if report.step is not None:
            self._steps[trial.trial_id].append(report.step)
        seen.report, seen.duration_s = report, result[ELAPSED]
        if report.failure is None:
            seen.curve[result[SHARE]] = result[METRIC]

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Writes the trial, finished or stopped early, unless it was lost and runs again."""
        seen, steps = self._last.pop(trial.trial_id), self._steps.pop(trial.trial_id)
        report = seen.report
        assert report is not None and seen.info is not None
        running = self._running(trials, ended=trial)
        if report.failure is not None and report.failure.cause.infrastructure:
            if self._runs_again(trial, seen, report.failure, running):
                return
            self._gives_up(trial, report.failure)
        else:
            self._given_up.clear()
        ended = replace(
            seen.info,
            stopped_early=not report.done,
            duration_s=seen.duration_s,
            curve=seen.curve,
            lost=self._lost.pop(seen.info.number, ()),
        )
        self._record(ended, report, steps, running)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Takes note of a trial whose actor was lost; writes it where it is given up."""
        seen, steps = self._last.pop(trial.trial_id, _Seen()), self._steps.pop(trial.trial_id, [])
        failure = self._lost_with(_last_error(trial), len(steps))
        running = self._running(trials, ended=trial)
        if self._runs_again(trial, seen, failure, running):
            return
        self._gives_up(trial, failure)
        config = trial.config
        score, *others = scores(self._task, [step.metrics for step in steps], failure)
        suggestion = Suggestion(config["number"], config["kind"], config["flags"], config["attempt"])
        ended = replace(
            seen.info or _unplaced(suggestion, seen.started_at, attempts=suggestion.attempt),
            duration_s=time.monotonic() - seen.began,
            curve=seen.curve,
            lost=self._lost.pop(config["number"], ()),
        )
        report = Report(self._levels, len(steps), score, done=True, others=tuple(others), failure=failure)
        self._record(ended, report, steps, running)

    def _lost_with(self, error: Exception | None, finished: int) -> Failure:
        """The failure of a trial whose actor raised `error`, or died with it, after so many load levels."""
        cause = Cause.NODE_LOST if isinstance(error, RayActorError) else Cause.INTERNAL
        raised = getattr(error, "cause", None) or error  # Ray wraps it in an exception of its own
        environment = known(self._task.engine.env, os.environ)
        return Failure(
            Stage.LOAD if finished else Stage.START,
            cause,
            plain(f"{type(raised).__name__}: {raised}".splitlines()[0], environment)[:300],
            evidence=plain(str(error), environment)[-4000:],
            progress=finished / self._levels,
        )

    def _runs_again(self, trial: Trial, seen: _Seen, failure: Failure, running: int) -> bool:
        """Notes that an attempt was lost; whether another follows (which the searcher suggests)."""
        number, attempt = trial.config["number"], trial.config["attempt"]
        node = seen.info.node if seen.info else "an unknown node"
        text = f"attempt {attempt} on {node}: {failure.cause}: {failure.detail}"
        if attempt == ATTEMPTS:
            return False
        self._lost.setdefault(number, []).append(text)
        LOG.warning("Lost trial %d, which runs again: %s", number, text)
        self._tell(running=running)
        return True

    def _gives_up(self, trial: Trial, failure: Failure) -> None:
        """Ends the study with the third trial in a row that is given up: nothing more would come of it."""
        self._given_up.append(f"trial {trial.config['number']}: {failure.cause}: {failure.detail}")
        if len(self._given_up) == GIVEN_UP_IN_A_ROW:
            self._broken = InfrastructureLost(
                f"{GIVEN_UP_IN_A_ROW} trials in a row were lost, each {ATTEMPTS} times\n"
                + "\n".join(f"  {text}" for text in self._given_up)
            )

    def _running(self, trials: list[Trial], ended: Trial | None = None) -> int:
        return sum(trial.status == Trial.RUNNING for trial in trials if trial is not ended)

    def _record(self, info: TrialInfo, report: Report, steps: list[Step], running: int | None = None) -> None:
        try:
            row = self._written(info, report, steps)
            self._announce(info, report, row, running)
        except Exception as error:
            LOG.exception("Trial %d could not be recorded", info.number)
            self._broken = self._broken or error

    def _written(self, info: TrialInfo, report: Report, steps: list[Step]) -> dict[str, Any]:
        """Writes the trial and returns its row. Where that fails, the study pauses and tries again."""
        limit = time.monotonic() + PATIENCE_S
        while True:
            try:
                row = record(self._store, self._task, self._engine, info, report, steps)
            except ResultsError as error:
                if time.monotonic() > limit or self._broken:
                    raise
                LOG.error("Paused, tried again in %g s: %s", TRIED_AGAIN_S, error)
                self._tell(trouble=f"paused: {error}")
                time.sleep(TRIED_AGAIN_S)
            else:
                if self._progress.trouble:
                    LOG.info("Results can be written again")
                    self._tell(trouble="")
                return row

    def _announce(self, info: TrialInfo, report: Report, row: dict[str, Any], running: int | None) -> None:
        failure, best = report.failure, self._progress.best
        refused = info.attempts == 0  # which cost no trial
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
            failed=self._progress.failed + (failure is not None and not refused),
            best=best,
            last=row,
        )

    def _tell(self, **changes: Any) -> None:
        elapsed_s = time.monotonic() - self._began
        changes["planned"] = self._planned()
        self._progress = replace(self._progress, elapsed_s=elapsed_s, **changes)
        if self._watch:
            self._watch(self._progress)


@dataclass
class _Seen:
    """What an attempt at a trial has shown so far."""

    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.monotonic)
    info: TrialInfo | None = None
    report: Report | None = None
    duration_s: float = 0.0
    curve: dict[float, float] = field(default_factory=dict)


def _unplaced(suggestion: Suggestion, started_at: datetime, *, attempts: int) -> TrialInfo:
    """What is known of a trial that no node has told of."""
    return TrialInfo(
        number=suggestion.number,
        kind=suggestion.kind,
        config=suggestion.config,
        gpu_ids=[],
        started_at=started_at,
        duration_s=0.0,
        node="",
        log_path="",
        attempts=attempts,
    )


def _last_error(trial: Trial) -> Exception | None:
    """What ended the trial. Tune's own `get_pickled_error` looks where the file is copied to only later."""
    try:
        error: Exception = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # noqa: BLE001  it may be of a class that only the worker has; recorded as unknown
        return None
    return error
