"""Data-parallel ranks: schedulers beside each other, each with GPUs and a KV cache of its own (--dp-size)."""

from __future__ import annotations

from collections.abc import Sequence

from tuner.engines.simulator.request import Request
from tuner.engines.simulator.scheduler import Scheduler, Step


class Balancer:
    """Chooses the rank of a request as SGLang's data-parallel controller does (--load-balance-method)."""

    def __init__(self, method: str, schedulers: Sequence[Scheduler]) -> None:
        self._method = method
        self._schedulers = schedulers
        self._next = 0

    def choose(self) -> int:
        """The rank that the next request goes to: in turn, or the one with the least to do."""
        ranks = range(len(self._schedulers))
        if self._method == "total_requests":
            return min(ranks, key=lambda rank: self._schedulers[rank].in_flight)
        if self._method == "total_tokens":
            return min(ranks, key=lambda rank: self._schedulers[rank].load)
        chosen, self._next = self._next, (self._next + 1) % len(self._schedulers)
        return chosen


class Ranks:
    """The ranks of one server in virtual time; every rank takes its steps on its own."""

    def __init__(self, method: str, schedulers: Sequence[Scheduler]) -> None:
        self.schedulers = schedulers
        self._balancer = Balancer(method, schedulers)
        self._of: dict[Request, int] = {}
        self._running: dict[int, tuple[float, Step]] = {}  # by rank: when its step ends

    def add(self, request: Request, now_s: float) -> None:
        """Queues `request` at one of the ranks; ValueError where it can never run."""
        rank = self._balancer.choose()
        self.schedulers[rank].add(request, now_s)
        self._of[request] = rank

    def abort(self, request: Request) -> None:
        """Takes `request` out, wherever it is."""
        self.schedulers[self._of.pop(request)].abort(request)

    def advance(self, now_s: float, until_s: float) -> tuple[float, Step | None]:
        """The first end of a step, and the step; `until_s` and None where none ends by then.

        Ranks that are free and have something to do begin a step at `now_s`.
        """
        for rank, scheduler in enumerate(self.schedulers):
            if rank not in self._running and (step := scheduler.step(now_s)) is not None:
                self._running[rank] = now_s + step.duration_s, step
        first = min(self._running, key=lambda rank: self._running[rank][0], default=None)
        if first is None or self._running[first][0] > until_s:
            return until_s, None
        end_s, step = self._running.pop(first)
        for request in step.tokens:
            if request.finish_reason is not None:
                self._of.pop(request, None)
        for request in step.aborted:
            self._of.pop(request, None)
        return end_s, step

    @property
    def waiting(self) -> int:
        """Requests that no rank has admitted."""
        return sum(len(scheduler.waiting) for scheduler in self.schedulers)

    @property
    def idle(self) -> bool:
        """Whether no rank has anything to do."""
        return not self._running and not any(scheduler.in_flight for scheduler in self.schedulers)

    def flush_cache(self) -> bool:
        """Forgets every cached prefix; False, and nothing, while requests are in flight."""
        return self.idle and all(scheduler.flush_cache() for scheduler in self.schedulers)
