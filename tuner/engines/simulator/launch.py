"""Starts the server, or fails to, with the log lines and the exit codes of SGLang.

A bad flag ends with exit code 2, a model that is not found with 1. What SGLang meets in its scheduler process
(memory, shapes, a port that is taken) it reports as a signal from a child and dies by SIGKILL; so does this.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from tuner.engines.simulator.cost import StepCost
from tuner.engines.simulator.flags import ServerArgs, parse_args
from tuner.engines.simulator.gpus import GPUS, Gpu
from tuner.engines.simulator.memory import CUDA_CONTEXT_MIB, Plan, StartFailure, kv_bytes_per_token, make_plan
from tuner.engines.simulator.models import Model, ModelNotFound, find_model
from tuner.engines.simulator.scheduler import Scheduler

log = logging.getLogger("simulator")


def main(argv: Sequence[str]) -> int:
    """Serves until a signal ends the process with exit code 0; returns the exit code of a failed start."""
    args = parse_args(argv)
    if args.random_seed is None:
        args = replace(args, random_seed=secrets.randbelow(1 << 30))
    logging.basicConfig(
        format="[%(asctime)s SIMULATION] %(message)s", datefmt="%Y-%m-%d %H:%M:%S", level=logging.INFO
    )
    log.info("This is a SIMULATION of SGLang on %s: no model is loaded and no GPU is used.", args.gpu)
    log.info("server_args=%s", args)
    for flag in args.ignored:
        log.info("%s is accepted and has no effect in the simulation.", flag)
    try:
        model, gpu = find_model(args.model_path), GPUS[args.gpu]
        plan = make_plan(args, model, gpu)
    except ModelNotFound:
        log.error(
            "Traceback (most recent call last):\nOSError: %s is not a local folder and is not a valid model "
            "identifier that the simulator knows.",
            args.model_path,
        )
        return 1
    except StartFailure as failure:
        log.error("%sTraceback (most recent call last):\n%s\n", failure.heading, failure)
        if not failure.killed:
            return 1
        die_as_sglang_does()
    _log_plan(args, plan, model, gpu)
    scheduler = Scheduler(args, plan, StepCost(args, plan, model, gpu), seed=args.random_seed or 0)

    from tuner.engines.simulator.server import serve  # noqa: PLC0415  a failing start needs no event loop

    try:
        serve(args, plan, scheduler)
    except OSError as error:  # the port is taken, or the host is not one of this machine's
        log.error("[Errno %s] %s", error.errno, error.strerror)
        die_as_sglang_does()
    return 0


def die_as_sglang_does() -> NoReturn:
    """Ends this process as SGLang's ends after a child has failed: by SIGKILL."""
    log.error("Received sigquit from a child process. It usually means the child failed.")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit(1)


def _log_plan(args: ServerArgs, plan: Plan, model: Model, gpu: Gpu) -> None:
    before = (gpu.memory_mib - CUDA_CONTEXT_MIB) / 1024
    kv_gib = plan.kv_tokens * kv_bytes_per_token(args, model) / (1 << 30)
    log.info(
        "Load weight end. type=%s, avail mem=%.2f GB, mem usage=%.2f GB.",
        model.name,
        before - plan.weights_gib,
        plan.weights_gib,
    )
    log.info(
        "KV Cache is allocated. #tokens: %d, K size: %.2f GB, V size: %.2f GB",
        plan.kv_tokens,
        kv_gib / 2,
        kv_gib / 2,
    )
    log.info(
        "max_total_num_tokens=%d, chunked_prefill_size=%s, max_prefill_tokens=%d, max_running_requests=%d, "
        "context_len=%d, available_gpu_mem=%.2f GB",
        plan.kv_tokens,
        plan.chunked_prefill_size or -1,
        args.max_prefill_tokens,
        plan.max_running_requests,
        plan.context_length,
        plan.available_gib,
    )
