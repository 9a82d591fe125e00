"""SGLang's scheduler over virtual time: which requests run in the next step, and how long it takes.

Pure: no clock, no I/O; the same calls with the same seed give the same answers. The rules are those of
SGLang 0.5.23's `managers/scheduler.py` and `managers/schedule_policy.py`: prefill before decode, chunked
prefill of one request across steps, admission by an estimate of the tokens still to come, retraction when the
KV cache is full. One differs: 0.5.23 reserves the whole answer of a request with ignore_eos, older versions
the estimate like for any other, as here; otherwise no load with fixed lengths would ever see a retraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tuner.engines.simulator.cost import Parts, StepCost, seconds
from tuner.engines.simulator.flags import ServerArgs
from tuner.engines.simulator.kv import KvPool
from tuner.engines.simulator.memory import Plan
from tuner.engines.simulator.policies import policy_named
from tuner.engines.simulator.request import Request
from tuner.engines.simulator.speculation import Speculation

CLIP_MAX_NEW_TOKENS = 4096  # longer answers are counted as this long by the admission
INIT_NEW_TOKEN_RATIO = 0.7  # share of the tokens still to come that the admission reserves
MIN_NEW_TOKEN_RATIO_FACTOR = 0.14
NEW_TOKEN_RATIO_DECAY_STEPS = 600
RETRACT_DECODE_STEPS = 20
# Jitter of single steps over that of whole runs; it averages out over a run. Estimate.
STEP_NOISE_FACTOR = 4.0


@dataclass(slots=True)
class Step:
    """One step of the engine: at its end, each of `tokens` has one more token, or more with speculation.

    They are `generated` tokens in all. `aborted` requests will get none; `retraction` is SGLang's log line,
    if any were sent back to the queue. `new_tokens` and `cached_tokens` are prefilled and found in the cache;
    0 in a decode step.
    """

    parts: Parts
    tokens: list[Request]
    aborted: list[Request]
    duration_s: float = 0.0
    new_tokens: int = 0
    cached_tokens: int = 0
    new_requests: int = 0
    generated: int = 0
    retraction: str = ""


class _Budget:
    """What one prefill step may still take, in tokens."""

    def __init__(self, chunk: int | None, input_tokens: int, reserved: float, mixed: int) -> None:
        self.chunk = (chunk if chunk is not None else float("inf")) - mixed
        self.input = input_tokens - mixed
        self.reserved = reserved + mixed  # of the KV cache, for tokens that admitted requests will generate

    def spend(self, tokens: int, to_generate: int) -> None:
        self.chunk -= tokens
        self.input -= tokens
        self.reserved += to_generate + 1

    def spent(self) -> bool:
        return self.chunk <= 0 or self.input <= 0


class Scheduler:
    """Requests go in with `add`, come out of `step` a token at a time, and leave early with `abort`."""

    def __init__(self, args: ServerArgs, plan: Plan, cost: StepCost, *, seed: int = 0) -> None:
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.kv = KvPool(plan.kv_tokens, sharing=not args.disable_radix_cache)
        self.retracted_total = 0
        self.new_token_ratio = self._init_ratio = min(
            1.0, INIT_NEW_TOKEN_RATIO * args.schedule_conservativeness
        )
        self._min_ratio = self._init_ratio * MIN_NEW_TOKEN_RATIO_FACTOR
        self._args = args
        self._plan = plan
        self._cost = cost
        self._chunked: Request | None = None  # the one whose prefill goes on in the next step
        self._full = False  # nothing is admitted until a running request leaves
        self._order = policy_named(args.schedule_policy, cached=not args.disable_radix_cache)
        self._order_rng = Random(seed)  # noqa: S311  no secret
        self._noise_rng = Random(seed + 1)  # noqa: S311  no secret
        self._step_noise = args.noise * STEP_NOISE_FACTOR
        self._speculation = plan.speculation
        self._guess_rng = Random(seed + 2)  # noqa: S311  no secret
        self._run_factor = self._noise_rng.lognormvariate(0, args.noise) if args.noise else 1.0

    @property
    def in_flight(self) -> int:
        """Requests that are known and not finished."""
        return len(self.waiting) + len(self.running) + (self._chunked is not None)

    @property
    def load(self) -> int:
        """Tokens that are cached for requests or waited for: what SGLang balances ranks by."""
        return self.kv.used + sum(len(request.prompt) for request in self.waiting)

    def add(self, request: Request, now: float) -> None:
        """Queues `request`, which arrived at `now`; its answer is cut to what context and KV cache can hold.

        ValueError, in SGLang's words, where not even the prompt fits.
        """
        drafts = 0 if self._speculation is None else self._speculation.draft_tokens
        room = min(self._plan.context_length, self.kv.capacity) - len(request.prompt) - 2 - drafts
        if room < 1:
            raise ValueError(
                f"Input length ({len(request.prompt)} tokens) exceeds the maximum allowed length "
                f"({len(request.prompt) + room - 1} tokens). Use a shorter input or enable "
                "--allow-auto-truncate."
            )
        request.arrival_s = now
        request.max_new_tokens = min(request.max_new_tokens, room)
        self.waiting.append(request)

    def abort(self, request: Request) -> None:
        """Takes `request` out, wherever it is; nothing happens to a finished one."""
        if request.finish_reason is not None:
            return
        request.finish_reason = "abort"
        if request in self.waiting:
            self.waiting.remove(request)
        elif request is self._chunked:
            self._chunked = None
            self._release(request)
        else:
            self.running.remove(request)
            self._release(request)

    def flush_cache(self) -> bool:
        """Forgets every cached prefix and returns True; False, and nothing, while requests are in flight."""
        if self.in_flight:
            return False
        self.kv.flush()
        self.new_token_ratio = self._init_ratio
        return True

    def step(self, now: float) -> Step | None:
        """The step that begins at `now`, or None where there is nothing to do.

        The requests it returns are already as they will be at its end.
        """
        batch = self._admit()
        if not batch and not self.running:
            return None
        step = self._prefill(batch) if batch else self._decode()
        step.duration_s = seconds(step.parts, self._cost.constants) * self._run_factor
        if self._step_noise:
            step.duration_s *= self._noise_rng.lognormvariate(0, self._step_noise)
        return step

    # Admission

    def _admit(self) -> list[tuple[Request, int]]:
        """The requests of the next prefill, each with the number of tokens to compute."""
        if (self._full or not self.waiting) and self._chunked is None:
            return []
        slots = self._plan.max_running_requests - len(self.running)
        if slots <= 0 and self._chunked is None:
            self._full = True
            return []
        if self.waiting:
            self._order(self.waiting, self.kv.prefixes, self._order_rng)
        budget = _Budget(
            self._plan.chunked_prefill_size,
            self._args.max_prefill_tokens,
            self.new_token_ratio * sum(map(_tokens_to_reserve, self.running)),
            mixed=len(self.running) if self._args.enable_mixed_chunk else 0,
        )
        batch: list[tuple[Request, int]] = []
        if self._chunked is not None:
            self._continue_chunked(budget, batch)
        most = min(slots, self._args.prefill_max_requests or slots)
        admitted = 0
        for request in self.waiting:
            if budget.spent() or len(batch) >= most:
                self._full = self._full or len(batch) >= slots
                break
            if not self._admit_one(request, budget, batch):
                break
            admitted += 1
        del self.waiting[:admitted]
        return batch

    def _continue_chunked(self, budget: _Budget, batch: list[tuple[Request, int]]) -> None:
        request = self._chunked
        assert request is not None
        missing = len(request.prompt) + request.generated - request.computed
        tokens = int(min(missing, budget.chunk, self.kv.available))
        if tokens <= 0:
            return
        self.kv.allocate(tokens)
        budget.spend(tokens, _tokens_to_reserve(request) if tokens == missing else 0)
        batch.append((request, tokens))
        self._chunked = None if tokens == missing else request

    def _admit_one(self, request: Request, budget: _Budget, batch: list[tuple[Request, int]]) -> bool:
        """Adds `request`, or the part of it that fits, to `batch`; False where it has to wait."""
        cached = self.kv.acquire_prefix(request)
        new = len(request.prompt) + request.generated - cached
        if not self._fits(request, new, budget, batch):
            self._full = bool(batch or self.running)
            self.kv.release_prefix(request)
            return False
        whole = new <= budget.chunk
        too_long = self._plan.chunked_prefill_size is None and batch and new >= budget.input
        if too_long or (not whole and self._chunked is not None):
            self.kv.release_prefix(request)
            return False
        new = new if whole else int(budget.chunk)
        request.prefix = request.computed = cached
        if request.cached_tokens is None:
            request.cached_tokens = cached
        self.kv.allocate(new)
        budget.spend(new, _tokens_to_reserve(request) if whole else 0)
        batch.append((request, new))
        if not whole:
            self._chunked = request
        return True

    def _fits(self, request: Request, new: int, budget: _Budget, batch: list[tuple[Request, int]]) -> bool:
        """Whether the KV cache has room for `request` beside what the admitted ones are expected to take."""
        if request.ignore_eos and self._args.disable_radix_cache:
            return self._fits_to_the_end([*self.running, *(other for other, _ in batch), request], new)
        return new + _tokens_to_reserve(request) + 1 < self.kv.available - budget.reserved

    def _fits_to_the_end(self, requests: list[Request], new: int) -> bool:
        """Whether all answers fit in full, when each frees its tokens as it ends (add_one_req_ignore_eos)."""
        room = self.kv.available - new
        ends = sorted(
            (request.tokens_left(), len(request.prompt) + request.generated) for request in requests
        )
        for index, (left, occupied) in enumerate(ends):
            still_running = len(ends) - index
            if room - left * still_running <= still_running:
                return False
            room += occupied
        return True

    # Steps

    def _prefill(self, batch: list[tuple[Request, int]]) -> Step:
        mixed = self.running if self._args.enable_mixed_chunk and self._fits_decode(self.running) else []
        parts = self._cost.prefill(
            [(new, request.computed) for request, new in batch], len(mixed), _context(mixed)
        )
        step = Step(parts, [], [], new_requests=len(batch))
        if mixed:
            self._extend_running(step)
        for request, new in batch:
            step.new_tokens += new
            if request.generated == 0 and request.computed == request.cached_tokens:
                step.cached_tokens += request.cached_tokens
            request.computed += new
            self.kv.share(request)
            if request is not self._chunked:
                request.generated += 1
                step.generated += 1
                step.tokens.append(request)
                self.running.append(request)
        self._leave_finished(step.tokens)
        return step

    def _decode(self) -> Step:
        step = Step(Parts(), [], [])
        if self._fits_decode(self.running):
            decay = (self._init_ratio - self._min_ratio) / NEW_TOKEN_RATIO_DECAY_STEPS
            self.new_token_ratio = max(self.new_token_ratio - decay, self._min_ratio)
        else:
            self._retract(step)
        step.parts = self._cost.decode(len(self.running), _context(self.running))
        self._extend_running(step, self._speculation)
        self._leave_finished(step.tokens)
        return step

    def _extend_running(self, step: Step, speculation: Speculation | None = None) -> None:
        """One more token for every running request; with `speculation` as many as were guessed rightly."""
        new = [1] * len(self.running)
        if speculation is not None:
            new = [min(speculation.draw(self._guess_rng), request.tokens_left()) for request in self.running]
        step.generated += sum(new)
        self.kv.allocate(sum(new))
        for request, tokens in zip(self.running, new, strict=True):
            request.computed += tokens
            request.generated += tokens
        step.tokens.extend(self.running)

    def _leave_finished(self, requests: list[Request]) -> None:
        finished = [request for request in requests if request.generated >= request.max_new_tokens]
        if not finished:
            return
        for request in finished:
            request.finish_reason = "length"
            self.kv.share(request)
            self._release(request)
        self.running = [request for request in self.running if request.finish_reason is None]

    def _retract(self, step: Step) -> None:
        """Sends requests back to the queue, those with the fewest tokens first, until a step fits."""
        free_before, ratio_before = self.kv.available, self.new_token_ratio
        kept = sorted(self.running, key=lambda r: (-r.generated, len(r.prompt)))
        retracted: list[Request] = []
        while len(kept) > 1 and (not retracted or not self._fits_decode(kept)):
            request = kept.pop()
            self._release(request)
            request.retractions += 1
            retracted.append(request)
        if not self._fits_decode(kept):
            last = kept.pop()
            self._release(last)
            last.finish_reason = "abort"
            last.error = "Out of memory even after retracting all other requests in the decode batch."
            step.aborted.append(last)
        self.running = kept
        decoded = sum(request.generated for request in kept)
        most = sum(request.max_new_tokens for request in kept)
        self.new_token_ratio = min(1.0, (decoded + RETRACT_DECODE_STEPS * len(kept)) / (most + 1))
        self.waiting.extend(retracted)
        self.retracted_total += len(retracted)
        step.retraction = (
            f"KV cache pool is full. Retract requests. #retracted_reqs: {len(retracted)}, "
            f"#new_tokens_gained: {self.kv.available - free_before}, "
            f"#new_token_ratio: {ratio_before:.4f} -> {self.new_token_ratio:.4f}"
        )

    def _fits_decode(self, requests: list[Request]) -> bool:
        """Whether the KV cache has room for a step: drafts take theirs until they are verified."""
        each = 1 if self._speculation is None else self._speculation.draft_tokens
        return len(requests) * each <= self.kv.available

    def _release(self, request: Request) -> None:
        self.kv.release(request)
        self._full = False


def _tokens_to_reserve(request: Request) -> int:
    return min(request.tokens_left(), CLIP_MAX_NEW_TOKENS)


def _context(requests: list[Request]) -> int:
    return sum(request.computed for request in requests)
