"""`vllm serve` for tests: vLLM's flags and log lines, and then the embedded simulator in its place."""

from __future__ import annotations

import argparse
import os
import sys

from tuner.engines.simulator.flags import parse_args
from tuner.engines.simulator.gpus import GPUS
from tuner.engines.simulator.memory import StartFailure, make_plan
from tuner.engines.simulator.models import find_model

# vLLM's name of a flag: its type, and the simulator's name.
VALUES = {
    "served-model-name": (str, "served-model-name"),
    "host": (str, "host"),
    "port": (int, "port"),
    "max-model-len": (int, "context-length"),
    "tensor-parallel-size": (int, "tp-size"),
    "gpu-memory-utilization": (float, "mem-fraction-static"),
    "max-num-seqs": (int, "max-running-requests"),
    "max-num-batched-tokens": (int, "chunked-prefill-size"),
}


def main() -> None:
    """Ends as vLLM ends where a flag is refused or memory is short; else becomes the simulator."""
    parser = argparse.ArgumentParser(prog="vllm serve", allow_abbrev=False)
    parser.add_argument("model_tag")
    for flag, (kind, _) in VALUES.items():
        parser.add_argument(f"--{flag}", type=kind)
    parser.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--enforce-eager", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--disable-log-stats", action="store_true")
    assert sys.argv[1] == "serve"
    args = parser.parse_args(sys.argv[2:])
    given = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    say(f"INFO 11-24 08:51:30 [api_utils.py:286] non-default args: {given}")

    argv = ["--model-path", args.model_tag]
    for flag, (_, simulated) in VALUES.items():
        if (value := getattr(args, flag.replace("-", "_"))) is not None:
            argv += [f"--{simulated}", str(value)]
    argv += ["--disable-cuda-graph"] * args.enforce_eager
    argv += ["--disable-radix-cache"] * (not args.enable_prefix_caching)
    simulator = parse_args(argv)
    try:
        plan = make_plan(simulator, find_model(simulator.model_path), GPUS[simulator.gpu])
    except StartFailure:
        say("ERROR 11-24 08:51:45 [core.py:1510] ValueError: No available memory for the cache blocks. Try")
        sys.exit("RuntimeError: Engine core initialization failed. See root cause above.")
    say(f"INFO 11-24 08:51:45 [kv_cache_utils.py:2327] GPU KV cache size: {plan.kv_tokens:,} tokens, Maximum")
    os.execv(sys.executable, [sys.executable, "-m", "tuner.engines.simulator", *argv])


def say(line: str) -> None:
    """A line of the log, as the process that serves writes it."""
    sys.stderr.write(f"(APIServer pid={os.getpid()}) {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
