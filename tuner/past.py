"""What a study has measured before it goes on, and whether it may go on with the task at hand.

Parquet is the truth: whatever became of the driver, the trials whose rows are whole have been measured, and
nothing else has. Knows nothing of Ray or of samplers.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from tuner.analysis.trials import Status, busy_s, rows, status
from tuner.engines.base import Config, Engine, Value
from tuner.errors import ResultsError, StudyError, UsageError
from tuner.failures import OF_THE_CLUSTER, Cause
from tuner.results import ResultStore, StudyResults, studies
from tuner.space import config_key
from tuner.task import Task, make_task

# What may be another from one part of a study to the next; with any other key's change, the trials before
# and after it would not compare.
_ADOPTABLE = ("parameters", "constraints", "optimization", "engine.start_timeout", "engine.hang_timeout")
_NEVER = ("optimization.objective",)
_OF_NO_ACCOUNT = ("task_name", "description", "optimization.seed")
_NEEDED = ("engine", "engine_version", "seed", "started_at")  # of study.json, to go on
_MOST_NAMED = 8  # changes in a message


@dataclass(frozen=True)
class PastTrial:
    """A trial whose end is known. `losses` are those of the task's objectives, of what was seen of it.

    `curve` has its first loss at each share of its load. One that was `refused` cost no trial.
    `expected_gain` is what the sampler expected of it, where that is known and of the task as it is now.
    """

    number: int
    kind: str
    config: Config
    losses: tuple[float, ...]
    share: float
    curve: Mapping[float, float]
    gpus: int
    duration_s: float
    refused: bool
    finished: bool
    expected_gain: float | None = None

    @property
    def whole(self) -> bool:
        """Whether it was seen to its end, and shows how a trial goes on."""
        return self.finished and 1.0 in self.curve


@dataclass(frozen=True)
class Past:
    """A study that goes on. `trials` stand in the order in which they ended, those lost left out.

    `elapsed_s` is the time in which trials ran, `failed` how many rows are of trials that did not finish,
    those left out that were refused. `lacked` has the losses, by configuration, of those that were refused
    because no node had their GPUs: that is no longer known, since nodes come and go.
    """

    about: Mapping[str, Any]
    trials: tuple[PastTrial, ...]
    next_number: int
    elapsed_s: float
    skipped: tuple[str, ...]
    finished: int
    failed: int
    best: dict[str, Any] | None
    lacked: Mapping[str, float] = field(default_factory=dict)

    @property
    def ended_early(self) -> str:
        """Why the search was ended; empty where it was not."""
        return str(self.about.get("ended_early") or "")

    def amended(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """What study.json says of the study that goes on, `about` being what it would say of a new one."""
        resumed = [*self.about.get("resumed_at", []), about["started_at"]]
        kept = {"started_at": self.about["started_at"], "ended_early": self.about.get("ended_early")}
        return {**about, **kept, "resumed_at": resumed}

    def configs(self) -> list[dict[str, Value]]:
        """What the search has tried, in the order of its proposals, without repeats and the baseline."""
        searched = [trial for trial in self.trials if trial.kind == "search"]
        return [dict(trial.config) for trial in sorted(searched, key=lambda trial: trial.number)]


@dataclass(frozen=True)
class Setup:
    """How a study is run, beside its task; it stands in study.json, and holds when the study goes on.

    `num_gpus` are a local cluster's: where the study goes on in another, that has its own.
    """

    num_gpus: int | None = None
    max_concurrent: int | None = None
    warm_start: tuple[str, ...] = ()
    prior: str | None = None
    virtual: bool = False
    calibration: str | None = None

    def going_on(self, about: Mapping[str, Any]) -> Setup:
        """That of a study that goes on. UsageError where another beginning is asked for than it had."""
        _require_as_begun("--warm-start", self.warm_start, tuple(about.get("warm_start") or ()))
        _require_as_begun("--prior", self.prior, about.get("prior"))
        _require_as_begun("--virtual", self.virtual or None, bool(about.get("virtual")) or None)
        _require_as_begun("--calibration", self.calibration, about.get("calibration"))
        return Setup(
            self.num_gpus or about.get("num_gpus"),
            self.max_concurrent or about.get("max_concurrent"),
            tuple(about.get("warm_start") or ()),
            about.get("prior"),
            bool(about.get("virtual")),
            about.get("calibration"),
        )


def seed_of(task: Task, asked: int | None, about: Mapping[str, Any] | None) -> int:
    """The seed of a study: `asked` for, the task's, or drawn; where it goes on, the one that it has."""
    if about:
        _require_as_begun("--seed", asked, about["seed"])
        return int(about["seed"])
    given = task.optimization.seed if asked is None else asked
    return secrets.randbelow(2**31) if given is None else given


def _require_as_begun(option: str, asked: Any, was: Any) -> None:
    if asked not in (None, (), was):
        before = "none" if was in (None, ()) else was
        raise UsageError(f"{option}: the study was begun with {before}, and goes on with it")


def newest_of(task: Task, root: str, *, virtual: bool = False) -> str | None:
    """The newest study in `root` of a task of this name, in virtual time or not; None where there is none."""
    for name in studies(root):
        try:
            about = ResultStore(root, name).about()
        except ResultsError:  # someone else's
            continue
        alike = about["task"].get("task_name", "") == task.task_name and bool(about.get("virtual")) == virtual
        if alike and about.get("kind") != "bench":
            return name
    return None


def past_of(store: ResultStore, task: Task, engine: Engine, version: str, *, adopt: bool) -> Past:
    """What is known of the study in `store`, which goes on with `task` on `engine`.

    StudyError where it was of another task, and that is not to be adopted, or cannot be.
    """
    results = store.read()
    about = results.about
    if about.get("kind") == "bench":
        raise StudyError(
            f"study {store.study!r} is a measurement of `tuner bench`, and has nothing to resume"
        )
    if missing := [key for key in _NEEDED if about.get(key) is None]:
        raise StudyError(f"study {store.study!r} cannot go on: its study.json lacks {', '.join(missing)}")
    changes = _changes(task, about, engine, version)
    _require_same(store.study, changes, adopt=adopt)
    trials, known = results.trials, _known(results)
    if changes:  # then there may be more to gain than was expected
        known = known.assign(expected_gain=math.nan)
    unfinished = trials["failure_cause"].notna()
    return Past(
        about={**about, "ended_early": None} if changes else about,
        trials=tuple(_past_trial(row, task) for row in rows(known.sort_values("ended_at", kind="stable"))),
        next_number=store.next_number(),
        elapsed_s=busy_s(trials),
        skipped=results.skipped,
        finished=int((~unfinished).sum()),
        failed=int((unfinished & (trials["attempts"] != 0)).sum()),
        best=_best(trials),
        lacked=_lacked(trials),
    )


def _known(results: StudyResults) -> pd.DataFrame:
    known = results.trials[~results.trials["failure_cause"].isin(OF_THE_CLUSTER)]
    return known.assign(ended_at=known["started_at"] + pd.to_timedelta(known["duration_s"], unit="s"))


def _lacked(trials: pd.DataFrame) -> dict[str, float]:
    refused = trials[(trials["failure_cause"] == str(Cause.NO_SUCH_GPUS)) & (trials["attempts"] == 0)]
    return {config_key(row["config"]): float(row["loss"]) for row in rows(refused)}


def _past_trial(row: Mapping[str, Any], task: Task) -> PastTrial:
    every, ended = row["objectives"], status(row)
    losses = [every[objective.name]["loss"] for objective in task.objectives] if every else [row["loss"]]
    curve = {float(share): float(loss) for share, loss in row["curve"].items()}
    return PastTrial(
        number=int(row["trial"]),
        kind=str(row["kind"]),
        config=row["config"],
        losses=tuple(map(float, losses)),
        share=max(curve, default=1.0) if ended is Status.STOPPED else 1.0,
        curve=curve,
        gpus=int(row["gpus"]),
        duration_s=float(row["duration_s"]),
        refused=row["attempts"] == 0,
        finished=ended is Status.FINISHED,
        expected_gain=None if math.isnan(row["expected_gain"]) else float(row["expected_gain"]),
    )


def _best(trials: pd.DataFrame) -> dict[str, Any] | None:
    """The row with the lowest loss of those that finished, as it was before the repeats; None without one."""
    sound = [row for row in rows(trials) if row["kind"] != "confirm" and status(row) is Status.FINISHED]
    best = min(sound, key=lambda row: float(row["loss"]), default=None)
    return best and {**best, "config": json.dumps(best["config"])}


def _changes(task: Task, about: Mapping[str, Any], engine: Engine, version: str) -> dict[str, str]:
    """By key: what is another now than when the study began."""
    before = make_task(about["task"], "study.json")
    old = dict(_flat(before.model_dump(mode="json")))
    new = dict(_flat(task.model_dump(mode="json")))
    old |= {"engine_version": about["engine_version"], "base_runtime": about["engine"]}
    new |= {"engine_version": version, "base_runtime": engine.name}
    keys = [key for key in {**old, **new} if key not in _OF_NO_ACCOUNT and old.get(key) != new.get(key)]
    return {key: f"{key}: {_text(old, key)} -> {_text(new, key)}" for key in keys}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _flat(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _text(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "(not there)"


def _require_same(study: str, changes: Mapping[str, str], *, adopt: bool) -> None:
    if not changes:
        return
    lasting = {key: text for key, text in changes.items() if not _adoptable(key)}
    if adopt and not lasting:
        return
    if lasting:
        remedy = f"its trials would not compare; a new study can learn from it: --warm-start {study}"
    else:
        remedy = "--adopt goes on with the task as it is now"
    listed = _listed(list((lasting or changes).values()))
    raise StudyError(f"study {study!r} was begun with another task: {remedy}\n{listed}")


def _adoptable(key: str) -> bool:
    within = any(key == each or key.startswith(f"{each}.") for each in _ADOPTABLE)
    return key == "engine_version" or (within and not key.startswith(_NEVER))


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MOST_NAMED
    return "\n".join(
        f"  {text}" for text in [*texts[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else [])]
    )
