"""The simulator as an engine without a process: its scheduler in this one, and time that is only counted.

It takes the same flags, fails with the same log lines, and answers the same bodies as the server over HTTP.
Nothing listens and nobody waits: whoever holds the server says when its next step is to be taken.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tuner import __version__
from tuner.engines.base import Config, RunningEngine
from tuner.engines.server import HOST, diagnose
from tuner.engines.sglang import server_info
from tuner.engines.simulator.adapter import SimulatorEngine
from tuner.engines.simulator.calls import read_call
from tuner.engines.simulator.cost import Parts
from tuner.engines.simulator.flags import ServerArgs, parse_args
from tuner.engines.simulator.launch import KILLED, FailedStart, effective_args, prepare
from tuner.engines.simulator.memory import Plan
from tuner.engines.simulator.ranks import Ranks
from tuner.engines.simulator.request import Request
from tuner.engines.simulator.scheduler import Scheduler
from tuner.failures import Stage, TrialFailed
from tuner.task import Task

VERSION = f"simulator-{__version__} in virtual time"
_NO_PORT = 1  # the flag is wanted and nothing listens


class VirtualServer:
    """A simulated server in virtual time (a `RunningEngine`); `now_s` is its clock, in seconds."""

    base_url = "virtual:"

    api_key = ""  # it asks for none

    def __init__(self, args: ServerArgs, plan: Plan, schedulers: Sequence[Scheduler], model: str) -> None:
        said = {"version": VERSION, "max_total_num_tokens": plan.kv_tokens}
        self.model = model
        self.info = server_info({**effective_args(args, plan), **said})
        self.start_s = 0.0
        self.now_s = 0.0
        self.ranks = Ranks(args.load_balance_method, schedulers)
        self.trace: list[tuple[float, Parts]] | None = None  # steps, if anyone wants to know them
        self._args, self._plan = args, plan
        self._told: dict[Request, int] = {}  # tokens that a client has read, where not every one is sent

    def alive(self) -> bool:
        """True: there is no process that could end."""
        return True

    def raise_if_failed(self) -> None:
        """Nothing, for the same reason."""

    def flush_cache(self) -> None:
        self.ranks.flush_cache()

    def submit(self, body: bytes, at_s: float) -> Request | int:
        """Queues a call of /v1/completions that arrives at `at_s`; the HTTP status where it is refused."""
        most = self._args.max_queued_requests
        if most is not None and self.ranks.waiting >= most:
            return 503
        try:
            request, _, _ = read_call("/v1/completions", body, self._args, self._plan.context_length)
            self.ranks.add(request, at_s)
        except ValueError:  # what the body asks for, or what fits
            return 400
        return request

    def advance(self, until_s: float) -> Sequence[Request] | None:
        """Moves `now_s` to the first end of a step; the requests whose clients hear of it then.

        None where no step ends by `until_s`: then it is that, or as it was where there is nothing to do.
        """
        if self.ranks.idle:
            return None
        self.now_s, step = self.ranks.advance(self.now_s, until_s)
        if step is None:
            return None
        if self.trace is not None:
            self.trace.append((self.now_s - step.duration_s, step.parts))
        heard = step.tokens
        if self._args.stream_interval > 1:
            heard = [request for request in heard if self._tells(request)]
        return [*heard, *step.aborted]

    def _tells(self, request: Request) -> bool:
        """Whether the client is sent something: first token, every --stream-interval, and the end."""
        if request.finish_reason is not None:
            self._told.pop(request, None)
            return True
        told = self._told.get(request, 0)
        if told and request.generated - told < self._args.stream_interval:
            return False
        self._told[request] = request.generated
        return True

    def abort(self, request: Request) -> None:
        """The client has gone."""
        self._told.pop(request, None)
        self.ranks.abort(request)


class VirtualEngine(SimulatorEngine):
    """The simulator in virtual time. `seed` is that of its noise, unless the task gives a random-seed.

    `now_s` is the time that its servers have served for, one after the other.
    """

    def __init__(self, task: Task, seed: int = 0) -> None:
        super().__init__(task)
        self._seed = seed
        self._before_s = 0.0
        self.server: VirtualServer | None = None  # the newest

    @property
    def now_s(self) -> float:
        return self._before_s + (self.server.now_s if self.server else 0.0)

    def version(self) -> str:
        return VERSION

    @contextmanager
    def launch(
        self, config: Config, *, gpu_ids: Sequence[str], log_path: Path, timeout_s: float
    ) -> Iterator[RunningEngine]:
        """A server that is there at once; TrialFailed (stage START) where a process would have ended."""
        began = time.monotonic()
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("w", encoding="utf-8") as log:
            server = self._server(config, log)
        server.start_s = time.monotonic() - began
        self._before_s, self.server = self.now_s, server
        yield server

    def _server(self, config: Config, log: io.TextIOBase) -> VirtualServer:
        said = io.StringIO()

        def say(line: str) -> None:
            said.write(f"[SIMULATION, virtual time] {line}\n")

        try:
            with contextlib.redirect_stderr(said):
                argv = ["--random-seed", str(self._seed), *self.arguments(config, HOST, _NO_PORT)]
                args = parse_args(argv)
            plan, schedulers = prepare(args, say)
        except (FailedStart, SystemExit) as failed:
            code = failed.code if isinstance(failed.code, int) else 1
            if isinstance(failed, FailedStart):
                say(f"{failed}" + (f"\n{KILLED}" if code < 0 else ""))
            raise TrialFailed(diagnose(Stage.START, code, said.getvalue(), self.signs)) from failed
        finally:
            log.write(said.getvalue())
        return VirtualServer(args, plan, schedulers, self.task.served_model_name)
