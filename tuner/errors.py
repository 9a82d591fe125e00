"""The exceptions that are raised. What an engine does wrong is no exception but a recorded
`failures.Failure`; what stands here ends a command, with the exit code that its class names.

    TunerError                exit 1
    ├── UsageError            exit 2   what was asked for cannot be done; nothing was started
    │   ├── TaskError                  the task file: every problem in it, with path and value
    │   ├── EngineUnavailable          the engine is not installed or not known on this machine
    │   ├── NotEnoughGpus              a trial asks for more GPUs than any node has
    │   └── StudyError                 a study of that name exists already, or does not
    ├── ResultsError          exit 1   the results folder cannot be written or read
    └── InfrastructureLost    exit 1   nodes are gone or lose every trial; the study can be resumed
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class TunerError(Exception):
    """Root of every exception that this package raises on purpose."""

    exit_code = 1


class UsageError(TunerError):
    """What was asked for cannot be done; nothing was started."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a task file.

    `path` is the key's place (`parameters.tp-size[1]`, empty for the file as a whole), `message` says
    what is wrong and with which value, `hint` what would be right (may be empty).
    """

    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.path}: " if self.path else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.message}{hint}"


class TaskError(UsageError):
    """A task file that cannot be used; `problems` holds every reason at once."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


@contextmanager
def told_of(source: str) -> Iterator[None]:
    """What an engine finds wrong with a task is told of its file, `source`, where it has one."""
    try:
        yield
    except TaskError as wrong:
        if not source:
            raise
        raise TaskError(source, list(wrong.problems)) from wrong


class EngineUnavailable(UsageError):
    """The engine is not installed, or no engine has that name; the message says what is missing."""


class NotEnoughGpus(UsageError):
    """A trial asks for more GPUs than any single node has, and would wait for ever."""


class StudyError(UsageError):
    """A study of that name exists already (and would be overwritten), or there is none."""


class ResultsError(TunerError):
    """The results folder cannot be written or read."""


class InfrastructureLost(TunerError):
    """Nodes are gone, or lose one trial after the other; what was finished is kept."""
