"""What the API answers: its bodies as pydantic models, from which the OpenAPI document is made."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tuner.standing import State


class Body(BaseModel):
    """A body of the API."""

    model_config = ConfigDict(frozen=True)


class ProblemBody(Body):
    """One thing that is wrong with a task or a request."""

    path: str = Field(
        description="The key's place in the task, or of the request; empty for the whole of it."
    )
    message: str = Field(description="What is wrong, and with which value.")
    hint: str = Field("", description="What would be right.")


class ErrorBody(Body):
    """Why a request was refused; `problems` has every reason at once."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": "the task has 1 problem",
                    "problems": [
                        {
                            "path": "optimisation",
                            "message": "is not a known key, got {}",
                            "hint": "did you mean optimization?",
                        }
                    ],
                }
            ]
        }
    )

    error: str = Field(description="The reason in one sentence.")
    problems: list[ProblemBody] = []


class CheckBody(Body):
    """A task without a problem, and what it would cost."""

    task_name: str
    lines: list[str] = Field(description="What `tuner check` prints.")


class TrialBody(Body):
    """A trial that has ended."""

    trial: int
    config: dict[str, Any] = Field(description="The engine's flags; empty for its defaults.")
    objective: float | None = Field(description="In the objective's own unit; null where it failed.")
    unit: str
    slo_met: bool | None = Field(description="Null where the task promises nothing.")
    text: str = Field(description="All of this in one line.")


class PlaceBody(Body):
    """Where a trial runs."""

    trial: int
    node: str
    gpu_ids: list[str]


class ProgressBody(Body):
    """How far a study is."""

    planned: int
    running: int
    waiting: int = Field(description="Trials that wait for GPUs.")
    finished: int
    failed: int
    elapsed_s: float
    remaining_s: float | None = Field(description="If trials go on as fast as so far.")
    best: TrialBody | None = Field(description="The best so far.")
    places: list[PlaceBody]
    trouble: str = Field(description="What the study waits for to end; empty where there is nothing.")


class StudyBody(Body):
    """How a study stands."""

    study: str
    state: State
    reason: str = Field("", description="Why it is broken, or was never begun, where it is so.")
    kept: bool = Field(description="Whether there is a folder of it already, which may hold results.")
    simulated: bool = Field(description="Whether its numbers come from a model of the engine.")
    engine: str
    model: str
    objective: str
    maximise: bool = Field(description="Whether more of the objective is better.")
    started_at: str = Field(description="ISO 8601; empty where it cannot be read.")
    updated_at: str = Field(description="ISO 8601; empty where it cannot be read.")
    progress: ProgressBody | None = None
    gain: str = Field("", description="What tuning bought, in one sentence, once it has ended.")
    job: str | None = Field(None, description="The Ray job that ran it last.")


class StudiesBody(Body):
    """A page of the studies, the newest first."""

    studies: list[StudyBody]
    total: int = Field(description="All that are kept.")


class GainBody(Body):
    """Share by which the best improves on the engine's defaults (0.2: a fifth), with its interval."""

    share: float
    low: float | None = Field(description="Null where the interval is not known.")
    high: float | None


class PointBody(Body):
    """A trial on the Pareto front of several objectives."""

    trial: int
    config: dict[str, Any]
    values: dict[str, float] = Field(description="By objective, as first measured, in its own unit.")


class BestBody(Body):
    """The best configuration of a study and what it is worth."""

    study: str
    simulated: bool
    trial: int
    config: dict[str, Any] = Field(description="The engine's flags; empty for its defaults.")
    headline: str = Field(description="The configuration in one line.")
    objective: str
    value: float
    unit: str
    others_text: str = Field(description="What it does for the further objectives; empty for one.")
    front: list[PointBody] = Field(description="Of several objectives, from the knee on; empty for one.")
    verdict: str
    gain: GainBody | None
    gain_text: str
    slo_text: str
    launch: str | None = Field(description="The command that starts the engine with it.")


class AboutBody(Body):
    """What this server has to offer."""

    name: str
    version: str
    engines: list[str]
    export_formats: list[str]
    tables: dict[str, list[str]] = Field(description="The tables of results, with their columns.")
