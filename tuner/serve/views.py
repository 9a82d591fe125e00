"""How a study stands and what came of it, as the API says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tuner.analysis import Summary
from tuner.analysis.trials import Trial, objectives_of
from tuner.export import launch_text
from tuner.live import trial_text
from tuner.objective import OBJECTIVES
from tuner.progress import StudyProgress
from tuner.report import sentences, words
from tuner.results import StudyResults
from tuner.serve.jobs import Job, JobState
from tuner.serve.models import BestBody, GainBody, PlaceBody, PointBody, ProgressBody, StudyBody, TrialBody
from tuner.standing import Standing, State
from tuner.task import Task

_LEAVES_IT = {JobState.SUCCEEDED: State.FINISHED, JobState.STOPPED: State.INTERRUPTED}


def body_of(stands: Standing, job: Job | None) -> StudyBody:
    """A study whose results are there. Its job, where this server knows one, knows better whether it runs."""
    about = stands.about
    task: Mapping[str, Any] = about["task"]
    updated_s = stands.updated_at.timestamp() if stands.updated_at else 0.0
    objective = _objective(task.get("optimization", {}).get("objective"))
    return StudyBody(
        study=stands.study,
        reason=stands.error,
        kept=True,
        state=_state(stands, updated_s, job),
        simulated=bool(about.get("simulated")),
        engine=str(about.get("engine", "")),
        model=str(task.get("model", {}).get("id_or_path", "")),
        objective=objective,
        maximise=_maximise(objective),
        started_at=str(about.get("started_at", "")),
        updated_at=_iso(updated_s) if updated_s else str(about.get("started_at", "")),
        progress=progress_body(stands.progress) if stands.progress else None,
        job=job.id if job else None,
    )


def body_of_a_job(job: Job, task: Task | None, virtual: bool, reason: str = "") -> StudyBody:
    """A study that its job has yet to make, or could not make."""
    began = _iso(job.started_s or datetime.now(UTC).timestamp())
    return StudyBody(
        study=job.study,
        state=_state_without_results(job.state),
        reason=reason,
        kept=False,
        simulated=virtual or (task is not None and task.base_runtime == "simulator"),
        engine=str(task.base_runtime) if task else "",
        model=task.model.id_or_path if task else "",
        objective=task.objective.name if task else "",
        maximise=bool(task and task.objective.maximise),
        started_at=began,
        updated_at=began,
        job=job.id,
    )


def unreadable_body(name: str, reason: str, job: Job | None) -> StudyBody:
    """A study of which there is no more to say than why it cannot be read."""
    return StudyBody(
        study=name,
        state=State.BROKEN,
        reason=reason,
        kept=True,
        **{"simulated": False, "engine": "", "model": "", "objective": "", "maximise": False},
        **{"started_at": "", "updated_at": ""},
        job=job.id if job else None,
    )


def best_body(name: str, results: StudyResults, answer: Summary, best: Trial) -> BestBody:
    """The best configuration of a study that has one."""
    gain = answer.gain and GainBody(share=answer.gain.share, low=answer.gain.low, high=answer.gain.high)
    return BestBody(
        study=name,
        simulated=bool(results.about.get("simulated")),
        trial=int(best["trial"]),
        config=dict(best["config"]),
        headline=words.config_text(best["config"]),
        objective=sentences.objective_sentence(answer, words.unit_of(results)),
        value=float(best["objective"]),
        unit=str(best["objective_unit"]),
        others_text=sentences.other_objectives(answer, objectives_of(results)),
        front=[_point(trial) for trial in answer.front],
        verdict=str(answer.verdict),
        gain=gain,
        gain_text=sentences.gain_sentence(answer),
        slo_text=sentences.slo_sentence(answer),
        launch=launch_text(results),
    )


def _point(trial: Trial) -> PointBody:
    values = {name: float(each["objective"]) for name, each in trial["objectives"].items()}
    return PointBody(trial=int(trial["trial"]), config=dict(trial["config"]), values=values)


def progress_body(progress: StudyProgress) -> ProgressBody:
    """How far a study is."""
    return ProgressBody(
        planned=progress.planned,
        running=progress.running,
        waiting=progress.waiting,
        finished=progress.finished,
        failed=progress.failed,
        elapsed_s=progress.elapsed_s,
        remaining_s=progress.remaining_s,
        best=_trial(progress.best) if progress.best else None,
        places=[
            PlaceBody(trial=each.trial, node=each.node, gpu_ids=list(each.gpu_ids))
            for each in progress.places
        ],
        trouble=progress.trouble,
    )


def _trial(row: Mapping[str, Any]) -> TrialBody:
    return TrialBody(
        trial=row["trial"],
        config=json.loads(row["config"]),
        objective=row["objective"],
        unit=row["objective_unit"],
        slo_met=row["slo_met"],
        text=trial_text(dict(row)),
    )


def winner_body(best: Trial) -> TrialBody:
    """The best of a study that has ended, as its results have it."""
    several = json.dumps(best["objectives"]) if best["objectives"] else None
    return _trial({**best, "config": json.dumps(best["config"]), "objectives": several})


def _state(stands: Standing, updated_s: float, job: Job | None) -> State:
    """What the study's files say, which are behind where its job has just begun, or was killed.

    Another driver may run it: whoever holds its lock, or has written since the job ended.
    """
    found = stands.state
    if job is None or stands.held:
        return found
    if job.state.over:
        another = updated_s > job.ended_s
        return found if found.ended or another else _LEAVES_IT.get(job.state, State.BROKEN)
    begun_since = not job.started_s or updated_s < job.started_s
    return State.STARTING if found.ended and begun_since else found


def _state_without_results(state: JobState) -> State:
    if not state.over:
        return State.STARTING
    return State.INTERRUPTED if state is JobState.STOPPED else State.BROKEN


def _objective(named: Any) -> str:
    return " + ".join(map(str, named)) if isinstance(named, list) else str(named or "minimize_latency")


def _maximise(objective: str) -> bool:
    known = OBJECTIVES.get(objective.partition(" + ")[0])
    return bool(known and known.maximise)


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat()
