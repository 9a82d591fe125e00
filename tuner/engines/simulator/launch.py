"""Starts the server, or fails to, with the log lines and the exit codes of SGLang.

`prepare` is all of a start but the port; a server in virtual time needs no more.

A bad flag ends with exit code 2, a model that is not found with 1. What SGLang meets in its scheduler process
(memory, shapes, a port that is taken) it reports as a signal from a child and dies by SIGKILL; so does this.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, NoReturn

from tuner.engines.simulator.architecture import Model
from tuner.engines.simulator.cost import StepCost
from tuner.engines.simulator.flags import ServerArgs, parse_args
from tuner.engines.simulator.gpus import GPUS, Gpu
from tuner.engines.simulator.memory import (
    CUDA_CONTEXT_MIB,
    Plan,
    StartFailure,
    kv_bytes_per_token,
    make_plan,
    replicas,
)
from tuner.engines.simulator.models import ModelNotFound, find_model
from tuner.engines.simulator.scheduler import Scheduler

log = logging.getLogger("simulator")

KILLED = "Received sigquit from a child process. It usually means the child failed."

Say = Callable[[str], None]


class FailedStart(Exception):
    """The server did not start; the message is what its log says last.

    `code` is the exit code of the process: positive, or −9 where SGLang would die by a signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str]) -> int:
    """Serves until a signal ends the process with exit code 0; returns the exit code of a failed start."""
    logging.basicConfig(
        format="[%(asctime)s SIMULATION] %(message)s", datefmt="%Y-%m-%d %H:%M:%S", level=logging.INFO
    )
    args = parse_args(argv)
    if args.random_seed is None:
        args = replace(args, random_seed=secrets.randbelow(1 << 30))
    try:
        plan, schedulers = prepare(args, log.info)
    except FailedStart as failed:
        log.error("%s", failed)
        if failed.code > 0:
            return failed.code
        die_as_sglang_does()

    from tuner.engines.simulator.server import serve  # noqa: PLC0415  a failing start needs no event loop

    try:
        serve(args, plan, schedulers)
    except OSError as error:  # the port is taken, or the host is not one of this machine's
        log.error("[Errno %s] %s", error.errno, error.strerror)
        die_as_sglang_does()
    return 0


def prepare(args: ServerArgs, say: Say) -> tuple[Plan, list[Scheduler]]:
    """The memory's plan and the schedulers of a server, one a rank; `say` is given its log. FailedStart."""
    say(f"This is a SIMULATION of SGLang on {args.gpu}: no model is loaded and no GPU is used.")
    say(f"server_args={args}")
    for flag in args.ignored:
        say(f"{flag} is accepted and has no effect in the simulation.")
    try:
        model, gpu = find_model(args.model_path), GPUS[args.gpu]
        plan = make_plan(args, model, gpu)
    except ModelNotFound as unknown:
        raise FailedStart(
            f"Traceback (most recent call last):\nOSError: {unknown} is not a local folder and is "
            "not a valid model identifier that the simulator knows.",
            1,
        ) from unknown
    except StartFailure as failure:
        text = f"{failure.heading}Traceback (most recent call last):\n{failure}\n"
        raise FailedStart(text, -signal.SIGKILL if failure.killed else 1) from failure
    for line in _plan_lines(args, plan, model, gpu):
        say(line)
    cost, seed = StepCost(args, plan, model, gpu, args.constants), args.random_seed or 0
    return plan, [Scheduler(args, plan, cost, seed=seed + 101 * rank) for rank in range(replicas(args))]


def effective_args(args: ServerArgs, plan: Plan) -> dict[str, Any]:
    """The arguments as the server resolved them."""
    resolved = {name: value for name, value in asdict(plan).items() if hasattr(args, name)}
    resolved["chunked_prefill_size"] = plan.chunked_prefill_size or -1
    resolved["served_model_name"] = args.served_model_name or args.model_path
    if (speculation := plan.speculation) is not None:
        resolved["speculative_num_steps"] = speculation.steps
        resolved["speculative_eagle_topk"] = speculation.topk
        resolved["speculative_num_draft_tokens"] = speculation.draft_tokens
        resolved["speculative_acceptance"] = speculation.acceptance
    return {**asdict(args), **resolved}


def die_as_sglang_does() -> NoReturn:
    """Ends this process as SGLang's ends after a child has failed: by SIGKILL."""
    log.error(KILLED)
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit(1)


def _plan_lines(args: ServerArgs, plan: Plan, model: Model, gpu: Gpu) -> Iterator[str]:
    before = (gpu.memory_mib - CUDA_CONTEXT_MIB) / 1024
    half_gib = plan.kv_tokens * kv_bytes_per_token(args, model) / (2 << 30)
    yield (
        f"Load weight end. type={model.name}, avail mem={before - plan.weights_gib:.2f} GB, "
        f"mem usage={plan.weights_gib:.2f} GB."
    )
    yield (
        f"KV Cache is allocated. #tokens: {plan.kv_tokens}, K size: {half_gib:.2f} GB, "
        f"V size: {half_gib:.2f} GB"
    )
    yield (
        f"max_total_num_tokens={plan.kv_tokens}, chunked_prefill_size={plan.chunked_prefill_size or -1}, "
        f"max_prefill_tokens={args.max_prefill_tokens}, max_running_requests={plan.max_running_requests}, "
        f"context_len={plan.context_length}, available_gpu_mem={plan.available_gib:.2f} GB"
    )
