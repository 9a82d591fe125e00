"""How a study stands: written into its folder by the driver that runs it, read by whoever watches.

So a study can be followed from anywhere that its folder is seen from. Knows nothing of Ray.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import Any

from tuner.errors import ResultsError
from tuner.progress import StudyProgress
from tuner.results import ResultStore
from tuner.secrets import redacted

LOG = logging.getLogger("tuner.study")
FILE = "progress.json"
_WRITTEN_S = 1.0  # apart, at the least
_HEARTBEAT_S = 15.0  # apart, at the most: without a lock, this alone tells that the driver lives
_SILENT_S = 4 * _HEARTBEAT_S


class State(StrEnum):
    """How a study is; only the first two can still change by themselves."""

    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"  # by someone, or its driver is gone: `tuner resume` goes on
    BROKEN = "broken"  # it ended in an error, which `Standing.error` tells

    @property
    def ended(self) -> bool:
        return self not in {State.STARTING, State.RUNNING}


@dataclass(frozen=True)
class Standing:
    """How a study stood at `updated_at` (UTC); `progress` is None before its first trial.

    `about` is its study.json. `held` says whether a driver of this machine is in it; None: no lock tells.
    """

    study: str
    state: State
    about: dict[str, Any]
    progress: StudyProgress | None = None
    updated_at: datetime | None = None
    error: str = ""
    held: bool | None = None

    def document(self) -> dict[str, Any]:
        """As JSON has it, without `about`."""
        return {
            "study": self.study,
            "state": self.state,
            "error": self.error,
            "updated_at": self.updated_at and self.updated_at.isoformat(),
            "progress": self.progress and self.progress.document(),
        }


class Journal:
    """Writes how a study stands into its folder while it runs, and tells whoever watches in this process.

    A context manager, whose end is the study's. What cannot be written is told in the study's log once,
    and stops nothing.
    """

    def __init__(self, store: ResultStore, watch: Callable[[StudyProgress], None] | None = None) -> None:
        self._store, self._watch = store, watch
        self._standing = Standing(store.study, State.STARTING, {})
        self._changed, self._ending = threading.Event(), threading.Event()
        self._told = False
        self._writer = threading.Thread(target=self._write_on, name="journal", daemon=True)

    def __enter__(self) -> Journal:
        self._write()
        self._writer.start()
        return self

    def show(self, progress: StudyProgress) -> None:
        """Takes the newest progress."""
        self._standing = replace(self._standing, state=State.RUNNING, progress=progress)
        self._changed.set()
        if self._watch:
            self._watch(progress)

    def end(self, state: State) -> None:
        """Says how the study has ended, before this is left."""
        self._standing = replace(self._standing, state=state)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._changed.set()
        self._writer.join()
        if isinstance(error, Exception):
            told = redacted(f"{type(error).__name__}: {error}", os.environ)
            self._standing = replace(self._standing, state=State.BROKEN, error=told)
        elif error is not None or not self._standing.state.ended:
            self._standing = replace(self._standing, state=State.INTERRUPTED)
        self._write()

    def _write_on(self) -> None:
        while not self._ending.is_set():
            self._changed.wait(_HEARTBEAT_S)
            self._changed.clear()
            if not self._ending.is_set():
                self._write()
                self._ending.wait(_WRITTEN_S)

    def _write(self) -> None:
        document = replace(self._standing, updated_at=datetime.now(UTC)).document()
        try:
            self._store.write_file(FILE, json.dumps(document).encode())
        except ResultsError as error:
            if not self._told:
                LOG.warning("Whoever watches this study sees nothing new: %s", error)
            self._told = True


def standing(store: ResultStore) -> Standing:
    """How the study stands now. ResultsError where its study.json cannot be read.

    A study whose driver is gone is interrupted, whatever its driver wrote last: on this machine its lock
    tells, elsewhere a minute without a word.
    """
    found = _as_written(store)
    if found.progress is None or not (found.state.ended or found.state is State.INTERRUPTED):
        return found
    return replace(found, progress=replace(found.progress, running=0, waiting=0, places=()))


def _as_written(store: ResultStore) -> Standing:
    """The same, with what ran when its driver wrote last."""
    about = store.about()
    if about.get("kind") == "bench":
        return Standing(store.study, State.FINISHED, about)
    held = store.held()
    written = _written(store)
    if written is None:
        return Standing(store.study, State.STARTING if held else State.INTERRUPTED, about, held=held)
    found = replace(written, about=about, held=held)
    if found.state.ended and not held:
        return found
    assert found.updated_at is not None
    silent = (datetime.now(UTC) - found.updated_at).total_seconds() > _SILENT_S
    alive = not silent if held is None else held
    if found.state.ended:  # and yet a driver is in it: resumed, and not begun yet
        return replace(found, state=State.STARTING) if alive and held else found
    return found if alive else replace(found, state=State.INTERRUPTED)


def follow(
    store: ResultStore, every_s: float = _WRITTEN_S
) -> Iterator[tuple[Standing, list[dict[str, Any]]]]:
    """How the study stands, and the rows of the trials that have ended since, until it has ended."""
    known: set[int] = set()
    while True:
        found = standing(store)  # before its trials: none may end between the last look and the end
        rows = store.new_trials(known)
        known.update(row["trial"] for row in rows)
        yield found, rows
        if found.state.ended:
            return
        time.sleep(every_s)


def _written(store: ResultStore) -> Standing | None:
    """What the driver wrote last; None where nothing of the kind is there."""
    content = store.read_file(FILE)
    if content is None:
        return None
    try:
        said = json.loads(content)
        progress, updated_at = said["progress"], datetime.fromisoformat(said["updated_at"])
        return Standing(
            study=store.study,
            state=State(said["state"]),
            about={},
            progress=None if progress is None else StudyProgress.of(progress),
            updated_at=updated_at if updated_at.tzinfo else updated_at.replace(tzinfo=UTC),
            error=str(said["error"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
