"""Whether a study's winner delivers: its exported command is started, and loaded as its trial was.

What is started is the argv that `tuner export` prints, argument for argument; only the program is this
machine's (the interpreter of the task, the simulator where SGLang was simulated), and the address loopback.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from tuner.analysis import Status, status, summary
from tuner.analysis.answer import CONFIDENCE, STARTS_DIFFER
from tuner.analysis.confirmation import EQUAL, one_more, promised
from tuner.analysis.trials import REQUEST_COLUMNS, Trial, is_true, objective_of, objectives_of, rows
from tuner.bench import Kept, measured
from tuner.engines import make_engine
from tuner.engines.base import Config, Engine, RunningEngine, StartsExported
from tuner.errors import StudyError, UsageError
from tuner.evaluate import Report
from tuner.export import Deployment, deployment_of
from tuner.objective import Objective
from tuner.results import StudyResults, data_home
from tuner.task import Task, make_task

VERIFY = "verify"


class Exported:
    """An engine that starts one exported command, whatever its configuration is asked to be."""

    gpu_flags = ()

    def __init__(self, task: Task, engine: Engine, deployment: Deployment) -> None:
        self.task, self.engine, self.deployment = task, engine, deployment
        self.name, self.simulated = engine.name, engine.simulated

    def version(self) -> str:
        return self.engine.version()

    def gpus(self, config: Config) -> int:
        return self.deployment.gpus

    def cpus(self, config: Config) -> int:
        return self.engine.cpus(config)

    def check(self, config: Config) -> None:
        """Nothing: whether it starts is what is to be seen."""

    def launch_command(self, config: Config) -> list[str]:
        return list(self.deployment.argv)

    def launch(
        self, config: Config, *, gpu_ids: Sequence[str], log_path: Path, timeout_s: float
    ) -> AbstractContextManager[RunningEngine]:
        """The command itself; see `StartsExported`."""
        assert isinstance(self.engine, StartsExported)
        argv, gpus = self.deployment.argv, self.deployment.gpus
        return self.engine.launch_exported(
            argv, gpus=gpus, gpu_ids=gpu_ids, log_path=log_path, timeout_s=timeout_s
        )


@dataclass(frozen=True)
class Compared:
    """An objective as the study has it and as it was measured now; `allowed` is the share it may be off."""

    objective: Objective
    promised: float
    measured: float
    allowed: float

    @property
    def worse_by(self) -> float:
        """The share that it is worse by; negative where it is better."""
        return -self.objective.gain(self.measured, self.promised)

    @property
    def delivered(self) -> bool:
        """Whether it is as good as promised, within what one run differs from the next."""
        if self.promised <= 0 or self.measured <= 0:
            return not self.objective.better(self.promised, self.measured)
        change = math.log(self.measured / self.promised)
        return (-change if self.objective.maximise else change) <= math.log1p(self.allowed)


@dataclass(frozen=True)
class Promises:
    """The SLOs as the study has them and now: the worst promise's (actual − threshold)/threshold."""

    promised: float
    measured: float
    worst: str
    allowed: float

    @property
    def delivered(self) -> bool:
        """Whether all are kept as they were; one that is over by no more than `allowed` is not broken."""
        return self.measured <= (1 + max(self.promised, 0.0)) * (1 + self.allowed) - 1


@dataclass(frozen=True)
class Verification:
    """What the exported command of a trial showed, beside what the study says of it."""

    study: str
    trial: int
    deployment: Deployment
    kept: Kept
    compared: tuple[Compared, ...] = ()
    promises: Promises | None = None

    @property
    def failed(self) -> bool:
        """Whether it did not start, or could not be measured."""
        return bool(self.kept.trial["failure_cause"])

    @property
    def delivered(self) -> bool:
        """Whether all that was promised was seen."""
        kept = self.promises is None or self.promises.delivered
        return not self.failed and kept and all(each.delivered for each in self.compared)

    @property
    def exit_code(self) -> int:
        """0 delivered; 3 not; 4 it did not start, or a load level could not be measured."""
        if self.failed:
            return 4
        return 0 if self.delivered else 3

    def document(self) -> dict[str, Any]:
        """For machines: seconds, tokens, shares."""
        row = self.kept.trial
        return {
            "study": self.study,
            "trial": self.trial,
            "delivered": self.delivered,
            **{
                name: row[name] for name in ("failure_cause", "failure_detail", "engine_version", "simulated")
            },
            "command": list(self.deployment.argv),
            "objectives": [
                {
                    "name": each.objective.name,
                    "unit": each.objective.unit_on(self.deployment.gpus),
                    "promised": each.promised,
                    "measured": each.measured,
                    "worse_by": each.worse_by,
                    "allowed": each.allowed,
                    "delivered": each.delivered,
                }
                for each in self.compared
            ],
            "slo": self.promises
            and {
                "met": row["slo_met"],
                "worst": self.promises.worst,
                "violation": self.promises.measured,
                "promised_violation": self.promises.promised,
                "allowed": self.promises.allowed,
                "delivered": self.promises.delivered,
            },
            "results": self.kept.location,
            "levels": self.kept.levels(),
        }


@dataclass(frozen=True)
class Candidate:
    """What is to be verified: a trial's row with the means of its repeats, and its command."""

    results: StudyResults
    promise: Trial
    exported: Exported
    log_path: Path

    @property
    def task(self) -> Task:
        """The study's task, whose load it is to bear."""
        return self.exported.task

    @property
    def seed(self) -> int:
        """The study's, so that the requests are the same."""
        return int(self.results.about.get("seed") or 0)

    @property
    def title(self) -> str:
        """`trial 7 of my-study`."""
        return f"trial {self.promise['trial']} of {self.results.about['study']}"

    @property
    def command(self) -> str:
        """The exported command in one line."""
        return shlex.join(self.exported.deployment.argv)


def candidate(results: StudyResults, number: int | None = None) -> Candidate:
    """Trial `number` of a study, or its best. UsageError where it cannot be verified on this machine."""
    about, deployment = results.about, deployment_of(results, number)
    best = summary(results).best
    if number is None or (best is not None and best["trial"] == number):
        assert best is not None  # or `deployment_of` had raised
        promise = best
    else:
        promise = promised(results, next(row for row in rows(results.trials) if row["trial"] == number))
    if status(promise) is Status.STOPPED or not pd.notna(promise["objective"]):
        raise StudyError(f"trial {promise['trial']} promises nothing: it was not measured to its end")
    task = make_task(about["task"], f"{about['study']}/study.json")
    engine = make_engine(task, about.get("engine"))
    if not isinstance(engine, StartsExported):
        raise UsageError(f"the engine {engine.name} starts no exported command (launch_exported)")
    engine.version()  # EngineUnavailable where it is not here
    log_path = data_home() / "logs" / f"{VERIFY}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.log"
    return Candidate(results, promise, Exported(task, engine, deployment), log_path)


def verify(
    what: Candidate, *, root: str | Path | None = None, watch: Callable[[Report], None] = lambda _: None
) -> Verification:
    """Starts the command, loads it, ends it, keeps what was seen below `root`, and compares.

    `watch` is called after each load level. A command that fails is an outcome, not an exception.
    """
    about, promise = what.results.about, what.promise
    kept = measured(
        what.task,
        what.exported,
        promise["config"],
        VERIFY,
        about={"verifies": about["study"], "base_url": what.title},
        seed=what.seed,
        results=root,
        log_path=what.log_path,
        watch=watch,
    )
    found = Verification(about["study"], int(promise["trial"]), what.exported.deployment, kept)
    if found.failed:
        return found
    allowed = math.expm1(allowance(what.results, promise, kept))
    compared = _compared(what.results, promise, kept.trial, allowed)
    return replace(found, compared=compared, promises=_promises(promise, kept.trial, allowed))


def allowance(results: StudyResults, promise: Trial, kept: Kept) -> float:
    """By how much log(objective) may be off what was promised and still be the same.

    Student's prediction interval from the study's repeats. A study without any does not know how much one
    start differs from the next: then it is `STARTS_DIFFER`, and the 95 % intervals of both means.
    """
    repeated = one_more(results, promise["config"], CONFIDENCE)
    if repeated is not None:
        return max(repeated, math.log1p(EQUAL))
    steps = rows(results.steps[results.steps["trial"] == promise["trial"]])
    latency, _ = objective_of(results).steered_by
    ours = _relative([(step[f"{latency}_mean_s"], step[f"{latency}_ci95_s"]) for step in steps])
    told = [level[REQUEST_COLUMNS[latency]] for level in kept.levels()]
    theirs = _relative([(each["mean"], each["ci95"]) for each in told])
    return math.hypot(STARTS_DIFFER, ours, theirs)


def _relative(levels: Sequence[tuple[Any, Any]]) -> float:
    """The half width of the interval of the mean over load levels, as a share; 0 where it is not known."""
    means = [float(mean) for mean, _ in levels if pd.notna(mean)]
    widths = [float(width) for _, width in levels if pd.notna(width)]
    return math.hypot(*widths) / sum(means) if len(widths) == len(means) and sum(means) > 0 else 0.0


def _compared(
    results: StudyResults, promise: Trial, row: dict[str, Any], allowed: float
) -> tuple[Compared, ...]:
    first, *others = objectives_of(results)
    then, now = promise["objectives"], json.loads(row["objectives"] or "{}")
    values = [(first, promise["objective"], row["objective"])]
    values += [(each, then[each.name]["objective"], now[each.name]["objective"]) for each in others]
    return tuple(Compared(each, float(before), float(after), allowed) for each, before, after in values)


def _promises(promise: Trial, row: dict[str, Any], allowed: float) -> Promises | None:
    if row["slo_worst_violation"] is None:
        return None
    then = promise["slo_worst_violation"]
    before = 0.0 if is_true(promise["slo_met"]) or not pd.notna(then) else float(then)
    return Promises(before, float(row["slo_worst_violation"]), str(row["slo_worst"]), allowed)
