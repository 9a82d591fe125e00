"""Outcomes that are recorded: why a trial did not finish. Knows nothing of engines or of scores.

A failure is a result. It says at which stage the trial stopped, for which cause, on what evidence,
and how far it had come, so that the search learns from it and the report can explain it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """Where a trial stopped, in the order in which a trial passes them."""

    CHECK = "check"  # before anything was started
    START = "start"  # the engine was started and never became ready
    LOAD = "load"  # the engine served, and failed under load

    @property
    def rank(self) -> int:
        """0 for CHECK, 1 for START, 2 for LOAD."""
        return list(Stage).index(self)


class Cause(StrEnum):
    """Why a trial stopped."""

    INVALID_FLAGS = "invalid flags"
    NO_SUCH_GPUS = "no such GPUs"
    MODEL_NOT_FOUND = "model not found"
    OUT_OF_MEMORY = "out of memory"
    CRASH = "crash"
    START_TIMEOUT = "start timeout"
    TRIAL_TIMEOUT = "trial timeout"
    HANG = "hang"
    REQUEST_ERRORS = "request errors"
    PORT_TAKEN = "port taken"
    GPU_IN_USE = "GPU in use by others"
    DRIVER = "driver error"  # of the GPU, or of NCCL between GPUs
    NODE_LOST = "node lost"
    INTERNAL = "internal error"

    @property
    def infrastructure(self) -> bool:
        """True where the machine is at fault and not the configuration: retried, never taught."""
        return self in {Cause.PORT_TAKEN, Cause.GPU_IN_USE, Cause.DRIVER, Cause.NODE_LOST, Cause.INTERNAL}


INFRASTRUCTURE = frozenset(str(cause) for cause in Cause if cause.infrastructure)  # as results have them
OF_THE_CLUSTER = INFRASTRUCTURE | {str(Cause.NO_SUCH_GPUS)}  # what says nothing of a configuration elsewhere


@dataclass(frozen=True)
class Failure:
    """Why a trial did not finish.

    `detail` is one line for people, `evidence` the last lines of the engine's log, `exit_code` the
    engine's own (negative: the signal that ended it; None: it was still running). `progress` is the
    share of the trial's load levels that were finished, 0 to 1.
    """

    stage: Stage
    cause: Cause
    detail: str
    evidence: str = ""
    exit_code: int | None = None
    progress: float = 0.0


class TrialFailed(Exception):
    """Raised by adapters to end a trial; `evaluate` turns it into its recorded `failure`."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(f"{failure.stage}: {failure.cause}: {failure.detail}")
