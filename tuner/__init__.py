"""An autotuner of LLM inference engines: the public names.

Names are resolved when they are first used, so that `python -m tuner.engines.simulator` and the
command line start without importing Ray or pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.errors import TaskError, TunerError
    from tuner.results import ResultStore, StudyResults
    from tuner.study import StudyOutcome, run_study
    from tuner.task import Task, load_task

__version__ = "0.1.0"

__all__ = [
    "ResultStore",
    "StudyOutcome",
    "StudyResults",
    "Task",
    "TaskError",
    "TunerError",
    "__version__",
    "load_task",
    "run_study",
]

_HOME = {
    "ResultStore": "tuner.results",
    "StudyOutcome": "tuner.study",
    "StudyResults": "tuner.results",
    "Task": "tuner.task",
    "TaskError": "tuner.errors",
    "TunerError": "tuner.errors",
    "load_task": "tuner.task",
    "run_study": "tuner.study",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tuner' has no attribute {name!r}")
