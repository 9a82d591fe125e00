"""A study for other tools to open: in an Optuna storage, or on an MLflow server.

Parquet stays the truth: what is published is made of it, as often as one likes, and each time only what is
new is added. So a study that runs is followed by publishing it again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tuner.errors import StudyError
from tuner.results import ResultStore, StudyResults

Publisher = Callable[[StudyResults, str], "Published"]


@dataclass(frozen=True)
class Published:
    """What one call has added to `place`, and how many trials of the study are there now."""

    place: str
    added: int
    total: int

    def __str__(self) -> str:
        return f"{self.place}: {self.added} trials added, {self.total} there"


def publishers() -> Mapping[str, Publisher]:
    """The tools by name; their libraries are imported when one is used."""
    from tuner.publish import mlflow, optuna  # noqa: PLC0415  `tuner --help` does not wait for them

    return {"optuna": optuna.publish, "mlflow": mlflow.publish}


def publish(results: StudyResults, targets: Mapping[str, str]) -> list[Published]:
    """Brings each of the `targets` (tool: its address) up to date; StudyError for what is no study."""
    if results.about.get("kind") == "bench":
        raise StudyError(f"{results.about['study']} is no study with trials: nothing to publish")
    known = publishers()
    return [known[tool](results, address) for tool, address in targets.items()]


def follow(
    store: ResultStore, targets: Mapping[str, str], wait: Callable[[], bool]
) -> Iterator[list[Published]]:
    """Publishes now, and again whenever further trials are there, while somebody runs the study.

    Yields what each time was added. Before it looks again it asks `wait`, which says whether to go on.
    """
    seen = -1
    while True:
        goes_on = store.held() is not False  # before looking: the last trial must not be missed
        if (files := store.next_number()) != seen:
            seen = files
            yield publish(store.read(), targets)
        if not goes_on or not wait():
            return
