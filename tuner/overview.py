"""What is kept where: a line on each study, from its study.json and its trials alone.

The requests, by far the most of a study's bytes, are not read, so that a study takes a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tuner.analysis import Summary, summary, without_repeats
from tuner.analysis.trials import Trial
from tuner.errors import TunerError
from tuner.results import TABLES, ResultStore, StudyResults
from tuner.results.schema import JSON_COLUMNS, decoded
from tuner.standing import Standing, State, standing

_AT_ONCE = 8  # studies that are read


@dataclass(frozen=True)
class Overview:
    """A study in a line. `answer` is None where there is none, `error` says why nothing could be read.

    The gain of `answer` has an interval only where the repeats give it: others take the requests.
    """

    study: str
    standing: Standing | None = None
    results: StudyResults | None = None
    answer: Summary | None = None
    error: str = ""

    @property
    def trials(self) -> int:
        """How many have ended, without repeats of the best and what was refused before it was started."""
        if self.results is None:
            return 0
        attempts = without_repeats(self.results).trials["attempts"]
        return int((attempts != 0).sum())

    @property
    def state(self) -> str:
        """How the study stands; `bench` of `tuner bench`, empty where nothing could be read.

        Versions that wrote no progress.json are believed to have finished what has all its trials.
        """
        if self.standing is None:
            return ""
        about = self.standing.about
        if about.get("kind") == "bench":
            return "bench"
        silent = self.standing.updated_at is None and self.standing.state is State.INTERRUPTED
        whole = about.get("ended_early") or 0 < int(about.get("planned_trials") or 0) <= self.trials
        return str(State.FINISHED if silent and whole else self.standing.state)

    def document(self) -> dict[str, Any]:
        """As JSON has it; values in the objective's own unit."""
        if self.standing is None or self.results is None:
            return {"study": self.study, "error": self.error}
        about, answer = self.standing.about, self.answer
        best = answer.best if answer is not None else None
        gain = answer.gain if answer is not None else None
        return {
            "study": self.study,
            "state": self.state,
            "error": self.standing.error or self.error,
            "trials": self.trials,
            "planned": about.get("planned_trials"),
            "objective": answer.objective.name if answer is not None else None,
            "best": None if best is None else float(best["objective"]),
            "objectives": {} if best is None else _values(best),
            "best_trial": None if best is None else int(best["trial"]),
            "config": None if best is None else best["config"],
            "gain": None if gain is None else gain.share,
            "verdict": None if answer is None else str(answer.verdict),
            "model": about["task"].get("model", {}).get("id_or_path"),
            "engine": about.get("engine"),
            "engine_version": about.get("engine_version"),
            "simulated": bool(about.get("simulated")),
            "started_at": about.get("started_at"),
        }


def _values(best: Trial) -> dict[str, float]:
    """Of several objectives, the value of each; empty for one."""
    return {name: float(each["objective"]) for name, each in best["objectives"].items()}


def overviews(root: str | Path, names: Sequence[str]) -> list[Overview]:
    """These studies below `root`; one that cannot be read says why, and stops none."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda name: overview(ResultStore(root, name)), names))


def overview(store: ResultStore) -> Overview:
    """A line on one study."""
    try:
        found = standing(store)
        results = _trials_alone(store, found.about)
    except TunerError as error:
        return Overview(store.study, error=str(error))
    try:
        answer = None if found.about.get("kind") == "bench" else summary(results)
    except TunerError as error:
        return Overview(store.study, found, results, error=str(error))
    return Overview(store.study, found, results, answer)


def _trials_alone(store: ResultStore, about: Mapping[str, Any]) -> StudyResults:
    trials = pd.DataFrame(store.new_trials(()), columns=TABLES["trials"].names)
    for column in (name for table, name in JSON_COLUMNS if table == "trials"):
        trials[column] = trials[column].map(decoded)
    steps, requests = (pd.DataFrame(columns=TABLES[name].names) for name in ("steps", "requests"))
    return StudyResults(about=dict(about), trials=trials, steps=steps, requests=requests)
