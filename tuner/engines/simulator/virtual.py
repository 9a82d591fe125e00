"""The simulated server without a server: a closed loop of clients in virtual time, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tuner.engines.simulator.constants import Constants
from tuner.engines.simulator.cost import Parts, StepCost
from tuner.engines.simulator.flags import ServerArgs, parse_args
from tuner.engines.simulator.gpus import GPUS
from tuner.engines.simulator.memory import Plan, make_plan
from tuner.engines.simulator.models import find_model
from tuner.engines.simulator.radix import Tokens
from tuner.engines.simulator.request import Request
from tuner.engines.simulator.scheduler import Scheduler


@dataclass(frozen=True)
class Served:
    """One answered request: when it was sent, and seconds from then."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    sent_s: float
    ttft_s: float
    e2e_s: float

    @property
    def tpot_s(self) -> float:
        """Mean time between tokens after the first; 0 where there is only one."""
        return (self.e2e_s - self.ttft_s) / max(1, self.output_tokens - 1)


@dataclass(frozen=True)
class ClosedLoop:
    """What a closed loop showed: the requests in the order in which they ended, and its length in seconds."""

    served: tuple[Served, ...]
    duration_s: float
    retracted: int

    @property
    def output_tok_s(self) -> float:
        return sum(one.output_tokens for one in self.served) / self.duration_s

    @property
    def ttft_s(self) -> float:
        return sum(one.ttft_s for one in self.served) / len(self.served)

    @property
    def tpot_s(self) -> float:
        return sum(one.tpot_s for one in self.served) / len(self.served)

    @property
    def e2e_s(self) -> float:
        return sum(one.e2e_s for one in self.served) / len(self.served)


def build(argv: Sequence[str], constants: Constants | None = None) -> tuple[ServerArgs, Plan, Scheduler]:
    """The scheduler of one rank for a command line, seeded with --random-seed or 0.

    StartFailure, ModelNotFound or SystemExit where a server would not start.
    """
    args = parse_args(argv)
    model = find_model(args.model_path)
    gpu = GPUS[args.gpu]
    plan = make_plan(args, model, gpu)
    cost = StepCost(args, plan, model, gpu, constants or args.constants)
    return args, plan, Scheduler(args, plan, cost, seed=args.random_seed or 0)


def closed_loop(
    scheduler: Scheduler,
    requests: Iterable[tuple[Tokens, int]],
    concurrency: int,
    trace: list[tuple[float, Parts]] | None = None,
) -> ClosedLoop:
    """Sends (prompt, output tokens) one after the other, `concurrency` at a time, until all are answered.

    When each step began, and its parts, go into `trace`.
    """
    source = iter(requests)
    now = 0.0
    first: dict[Request, float] = {}
    served: list[Served] = []

    def send() -> None:
        for prompt, output in source:
            scheduler.add(Request(prompt, output, ignore_eos=True), now)
            return

    for _ in range(concurrency):
        send()
    while (step := scheduler.step(now)) is not None:
        if trace is not None:
            trace.append((now, step.parts))
        now += step.duration_s
        for request in step.tokens:
            if request.generated == 1:
                first[request] = now
            if request.finish_reason is not None:
                ttft = first.pop(request) - request.arrival_s
                served.append(
                    Served(
                        len(request.prompt),
                        request.cached_tokens or 0,
                        request.generated,
                        request.arrival_s,
                        ttft,
                        now - request.arrival_s,
                    )
                )
                send()
        for request in step.aborted:
            first.pop(request, None)
            send()
    return ClosedLoop(tuple(served), now, scheduler.retracted_total)
