"""A study on an MLflow tracking server: a run for the study, and a run of each trial nested under it.

Flags are parameters; the objective, the score and every figure of each load level are metrics, the level's
number their step. The experiment is called as the task.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from tuner.analysis import Status, objective_of, status, summary
from tuner.analysis.trials import Trial, rows
from tuner.errors import ResultsError, UsageError
from tuner.export import best_deployment, shell
from tuner.publish import Published
from tuner.report import html
from tuner.report.sentences import gain_sentence
from tuner.report.words import config_text, value_text
from tuner.results import StudyResults
from tuner.secrets import redacted

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

_STATES = {
    Status.FINISHED: "FINISHED",
    Status.HARD_SLO: "FINISHED",
    Status.STOPPED: "KILLED",
    Status.FAILED: "FAILED",
}
_STUDY, _TRIAL = "tuner.study", "tuner.trial"
_FIGURES = ("objective", "score", "loss", "slo_worst_violation", "max_load", "start_s", "duration_s", "gpus")
_TAGS = (
    *("kind", "engine", "engine_version", "simulated", "slo_met", "slo_worst", "gpu_model", "node"),
    *("objective_name", "objective_unit", "failure_stage", "failure_cause", "failure_detail"),
)
_KEYS = ("study", "trial", "step", "concurrency", "request_rate")  # of a load level, and no figures of it
_AT_ONCE = 500  # metrics in a call, of which MLflow takes 1000
_LONGEST = 4000  # characters of a tag, of which MLflow takes 8000
_MOST_RUNS = 1000  # in an answer


def publish(results: StudyResults, uri: str) -> Published:
    """Adds what the server at `uri` lacks of the study, and renews the run of the study with its report.

    UsageError where MLflow is not installed, ResultsError where the server cannot be used.
    """
    try:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415  an extra, and half a second
        from mlflow.tracking import MlflowClient  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(
            f"MLflow cannot be imported: pip install 'inference-autotuner[mlflow]': {error}"
        ) from error
    place = redacted(uri, {})
    try:
        return _Server(MlflowClient(tracking_uri=uri), results).publish(place)
    except (MlflowException, OSError) as error:
        raise ResultsError(
            f"cannot publish to {place}: {redacted(str(error), {}).splitlines()[0]}"
        ) from error


class _Server:
    """One study on a server."""

    def __init__(self, client: MlflowClient, results: StudyResults) -> None:
        self._client, self._results, self._about = client, results, results.about
        self._answer = summary(results)

    def publish(self, place: str) -> Published:
        """Adds the new trials below the study's run."""
        name = self._about["task"].get("task_name") or "inference-autotuner"
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        parent = self._parent(experiment)
        there = self._whole_trials(experiment, parent)
        new = [row for row in rows(self._results.trials) if int(row["trial"]) not in there]
        for row in new:
            self._add(experiment, parent, row)
        self._renew(parent)
        return Published(place, len(new), len(there) + len(new))

    def _parent(self, experiment: str) -> str:
        """The run of the study, made where there is none."""
        study = self._about["study"]  # of letters, digits and - _ . only
        runs = self._client.search_runs(
            [experiment], f"tags.\"{_STUDY}\" = '{study}' and tags.\"{_TRIAL}\" = 'all'"
        )
        if runs:
            return str(runs[0].info.run_id)
        run = self._client.create_run(
            experiment,
            start_time=_milliseconds(self._about.get("started_at")),
            tags={_STUDY: study, _TRIAL: "all"},
            run_name=study,
        )
        return str(run.info.run_id)

    def _whole_trials(self, experiment: str, parent: str) -> set[int]:
        """The numbers of the trials that are there; those that were cut off half way are removed."""
        found: set[int] = set()
        for run in self._children(experiment, parent):
            if run.info.status == "RUNNING":
                self._client.delete_run(run.info.run_id)
            else:
                found.add(int(run.data.tags[_TRIAL]))
        return found

    def _children(self, experiment: str, parent: str) -> Iterator[Run]:
        token: str | None = None
        while token != "":
            page = self._client.search_runs(
                [experiment],
                f"tags.\"mlflow.parentRunId\" = '{parent}'",
                max_results=_MOST_RUNS,
                page_token=token,
            )
            yield from page
            token = page.token or ""

    def _add(self, experiment: str, parent: str, row: Trial) -> None:
        """One trial as a nested run, ended last: what is not ended is not whole."""
        from mlflow.entities import Param  # noqa: PLC0415

        began = _milliseconds(row["started_at"])
        told = {name: str(row[name])[:_LONGEST] for name in _TAGS if pd.notna(row[name])}
        tags = {"mlflow.parentRunId": parent, _STUDY: self._about["study"], _TRIAL: str(row["trial"]), **told}
        name = f"{row['trial']}: {config_text(row['config'])}"[:250]
        run = self._client.create_run(experiment, start_time=began, tags=tags, run_name=name).info.run_id
        params = [Param(flag, value_text(value)) for flag, value in row["config"].items()]
        self._client.log_batch(run, params=params)
        metrics = list(self._metrics(row, began))
        for place in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(run, metrics=metrics[place : place + _AT_ONCE])
        duration_ms: int = round(1000 * float(row["duration_s"])) if pd.notna(row["duration_s"]) else 0
        self._client.set_terminated(run, _STATES[status(row)], end_time=began + duration_ms)

    def _metrics(self, row: Trial, began: int) -> Iterator[Metric]:
        from mlflow.entities import Metric  # noqa: PLC0415

        for name in _FIGURES:
            if _is_figure(row[name]):
                yield Metric(name, float(row[name]), began, 0)
        steps = self._results.steps
        for step in rows(steps[steps["trial"] == row["trial"]]):
            for name, value in step.items():
                if name not in _KEYS and _is_figure(value):
                    yield Metric(f"level/{name}", float(value), began, int(step["step"]))

    def _renew(self, parent: str) -> None:
        """What is known of the study as a whole, in place of what was known before."""
        answer, about, results = self._answer, self._about, self._results
        best, objective = answer.best, objective_of(results)
        tags: dict[str, Any] = {
            "engine": about.get("engine"),
            "engine_version": about.get("engine_version"),
            "simulated": bool(about.get("simulated")),
            "objective_name": objective.name,
            "verdict": str(answer.verdict),
            "best_trial": None if best is None else int(best["trial"]),
            "mlflow.note.content": gain_sentence(answer),
        }
        for name, value in tags.items():
            if value is not None:
                self._client.set_tag(parent, name, str(value)[:_LONGEST])
        figures = {
            "trials": len(results.trials),
            "best_objective": None if best is None else best["objective"],
            "best_score": None if best is None else best["score"],
            "gain": None if answer.gain is None else answer.gain.share,
        }
        for name, value in figures.items():
            if value is not None and _is_figure(value):
                self._client.log_metric(parent, name, float(value), step=len(results.trials))
        self._client.log_text(parent, json.dumps(about["task"], indent=2), "task.json")
        launch = None if best is None else shell(best_deployment(results)).strip()
        self._client.log_text(parent, html(results, launch), "report.html")
        if is_over(results):
            self._client.set_terminated(parent, "FINISHED")


def is_over(results: StudyResults) -> bool:
    """Whether the search has ended early, or as many trials are there as were planned.

    What was refused before it was started is none of them.
    """
    searched = results.trials[(results.trials["kind"] != "confirm") & (results.trials["attempts"] != 0)]
    planned = results.about.get("planned_trials")
    return bool(results.about.get("ended_early")) or (isinstance(planned, int) and len(searched) >= planned)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _milliseconds(when: Any) -> int:
    """Since 1970, of a time or of its text; 0 where there is none."""
    found = pd.to_datetime(when, utc=True, errors="coerce")
    return 0 if pd.isna(found) else round(found.timestamp() * 1000)
