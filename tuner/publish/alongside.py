"""Publishing a study while it runs in this process: in a thread, so that no trial waits for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Event, Thread

from tuner.errors import TunerError
from tuner.progress import StudyProgress
from tuner.publish import publish
from tuner.results import ResultStore


class Alongside:
    """Brings `targets` up to date whenever a trial has ended, and once more at the end.

    A context manager. What cannot be published stops nothing: `say` is told, once for each new reason.
    """

    def __init__(self, root: str, targets: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._root, self._targets, self._say = root, targets, say
        self._study, self._told = "", ""
        self._news, self._ended = Event(), False
        self._thread = Thread(target=self._run, name="publishing", daemon=True)

    def __enter__(self) -> Alongside:
        if self._targets:
            self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended = True
        self._news.set()
        if self._targets:
            self._thread.join()

    def saw(self, progress: StudyProgress) -> None:
        """A trial may have ended."""
        if progress.last is not None:
            self._study = progress.last["study"]
            self._news.set()

    def _run(self) -> None:
        ended = False
        while not ended:
            self._news.wait()
            self._news.clear()
            ended = self._ended  # as it was before: then this is the last time
            if self._study:
                self._publish()

    def _publish(self) -> None:
        try:
            publish(ResultStore(self._root, self._study).read(), self._targets)
        except TunerError as error:
            self._tell(str(error))
        except Exception as error:  # noqa: BLE001  whatever another's library raises, trials go on
            self._tell(f"{type(error).__name__}: {error}")

    def _tell(self, reason: str) -> None:
        if reason != self._told:
            self._told = reason
            self._say(f"not published: {reason}")
