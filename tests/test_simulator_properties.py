"""Whole simulated runs: the same seed gives the same run, and better hardware never a longer one.

A closed loop takes its steps in the same order however long they take, so that what is true of every step is
true of the run.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.engines.simulator import virtual
from tuner.engines.simulator.constants import DEFAULT, FITTED_NAMES, MOST, Constants
from tuner.engines.simulator.cost import StepCost
from tuner.engines.simulator.flags import parse_args
from tuner.engines.simulator.gpus import GPUS, Gpu
from tuner.engines.simulator.memory import make_plan
from tuner.engines.simulator.models import find_model
from tuner.engines.simulator.scheduler import Scheduler

models = st.sampled_from(
    ["llama-3.1-8b", "qwen2.5-7b-awq", "gpt-oss-20b", "deepseek-v2-lite", "mixtral-8x7b"]
)
flags = st.sampled_from(
    [
        "",
        "--enable-mixed-chunk --chunked-prefill-size 256",
        "--disable-overlap-schedule",
        "--disable-cuda-graph",
        "--speculative-algorithm EAGLE --speculative-draft-model-path d",
        "--max-total-tokens 3000 --schedule-conservativeness 0.2",
        "--schedule-policy random --disable-radix-cache",
    ]
)
loads = st.lists(st.tuples(st.integers(1, 600), st.integers(1, 60)), min_size=1, max_size=12)


def served(
    model: str,
    options: str,
    load: list[tuple[int, int]],
    gpu: Gpu,
    tp: int = 4,
    constants: Constants = DEFAULT,
) -> virtual.ClosedLoop:
    argv = ["--model-path", model, "--tp-size", str(tp), *options.split()]
    args = parse_args(argv)
    sizes, known = find_model(model), GPUS[gpu.name]
    plan = make_plan(args, sizes, known)  # the same memory, whatever the GPU's other figures
    scheduler = Scheduler(args, plan, StepCost(args, plan, sizes, gpu, constants), seed=args.random_seed or 0)
    requests = (
        (tuple((i // 2, j) for j in range(length)), output) for i, (length, output) in enumerate(load)
    )
    return virtual.closed_loop(scheduler, requests, 4)


@settings(max_examples=40)
@given(models, flags, loads, st.integers(0, 3))
def test_the_same_seed_is_the_same_run(
    model: str, options: str, load: list[tuple[int, int]], seed: int
) -> None:
    options = f"{options} --noise 0.05 --random-seed {seed}"
    first, second = (served(model, options, load, GPUS["h100"]) for _ in range(2))
    assert first == second
    assert first != served(model, options.replace(f"seed {seed}", f"seed {seed + 1}"), load, GPUS["h100"])


@settings(max_examples=60)
@given(
    models,
    flags,
    loads,
    st.sampled_from(["hbm_bytes_s", "flops_bf16", "link_bytes_s"]),
    st.floats(1, 10),
)
def test_better_hardware_is_never_a_longer_run(
    model: str, options: str, load: list[tuple[int, int]], figure: str, factor: float
) -> None:
    slow, options = GPUS["h100"], f"{options} --noise 0"
    fast = replace(slow, **{figure: getattr(slow, figure) * factor})
    before, after = (served(model, options, load, gpu) for gpu in (slow, fast))
    assert after.duration_s <= before.duration_s * (1 + 1e-12)
    assert sum(r.output_tokens for r in after.served) == sum(r.output_tokens for r in before.served)


@settings(max_examples=60)
@given(models, flags, loads, st.sampled_from(FITTED_NAMES), st.floats(1, 10))
def test_better_constants_are_never_a_longer_run(
    model: str, options: str, load: list[tuple[int, int]], name: str, factor: float
) -> None:
    value, share = getattr(DEFAULT, name), MOST[name] == 1
    better = replace(DEFAULT, **{name: min(1.0, value * factor) if share else value / factor})
    gpu, options = GPUS["h100"], f"{options} --noise 0"
    assert served(model, options, load, gpu, constants=better).duration_s <= served(
        model, options, load, gpu
    ).duration_s * (1 + 1e-12)
