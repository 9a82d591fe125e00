"""The adapter of the embedded simulator: SGLang's, with the simulator's process in its place."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence

from tuner import __version__
from tuner.engines.base import Config
from tuner.engines.flags import unrecognized
from tuner.engines.sglang import SGLangEngine, flag_arguments
from tuner.engines.simulator.flags import parse_args, spellings
from tuner.failures import Cause, Failure, Stage, TrialFailed
from tuner.task import Task

_OWN_FLAGS = ("gpu", "noise", "speculative-acceptance", "calibration")  # which SGLang does not have


class SimulatorEngine(SGLangEngine):
    """`python -m tuner.engines.simulator`: SGLang's flags, endpoints and failures without a GPU."""

    name = "simulator"
    simulated = True
    serve = ("tuner.engines.simulator",)

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.command = (sys.executable, "-m", *self.serve)

    def version(self) -> str:
        return f"simulator-{__version__}"

    def check(self, config: Config) -> None:
        """Refuses flags that SGLang's own parser would refuse, and abbreviations."""
        flags = {**self.task.engine.args, **config}
        for name in flags:
            if f"--{name}" not in spellings():
                why = unrecognized(f"--{name}", spellings())
                raise TrialFailed(Failure(Stage.CHECK, Cause.INVALID_FLAGS, why))
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parse_args(["--model-path", "m", *flag_arguments(flags)])
        except SystemExit as refused:
            code = refused.code if isinstance(refused.code, int) else 2
            lines = said.getvalue().strip().splitlines() or ["refused"]
            failure = Failure(Stage.CHECK, Cause.INVALID_FLAGS, lines[-1], said.getvalue(), code)
            raise TrialFailed(failure) from refused

    def launch_command(self, config: Config) -> list[str]:
        """SGLang's own launch command: the simulator is not what anyone deploys."""
        real = {flag: value for flag, value in self.task.engine.args.items() if flag not in _OWN_FLAGS}
        args = {"engine": self.task.engine.model_copy(update={"args": real})}
        return SGLangEngine(self.task.model_copy(update=args)).launch_command(config)

    def exported_arguments(self, argv: Sequence[str]) -> list[str]:
        """SGLang's, and the simulator's own flags, which no exported command has."""
        own = {flag: value for flag, value in self.task.engine.args.items() if flag in _OWN_FLAGS}
        return [*super().exported_arguments(argv), *flag_arguments(own)]

    def _container(self, gpu_ids: Sequence[str] | None) -> None:
        return None
