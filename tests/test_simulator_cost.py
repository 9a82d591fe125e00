"""The cost model: faster hardware is never slower, more work is never faster, and published figures hold."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tuner.engines.simulator.cost import StepCost
from tuner.engines.simulator.flags import parse_args
from tuner.engines.simulator.gpus import GPUS, Gpu
from tuner.engines.simulator.memory import make_plan
from tuner.engines.simulator.models import find_model

models = st.sampled_from(["llama-3.2-1b", "llama-3.1-8b", "qwen2.5-7b", "mixtral-8x7b"])
gpus = st.sampled_from([GPUS["h100"], GPUS["h200"], GPUS["b200"]])
sizes = st.sampled_from([2, 4])
batches = st.integers(1, 600)
tokens = st.integers(1, 16384)


def cost(model: str, gpu: Gpu, tp: int = 2, flags: str = "") -> StepCost:
    args = parse_args(["--model-path", model, "--tp-size", str(tp), *flags.split()])
    sizes_of = find_model(model)
    return StepCost(args, make_plan(args, sizes_of, gpu), sizes_of, gpu)


@given(
    models,
    gpus,
    sizes,
    batches,
    tokens,
    st.floats(1, 3),
    st.sampled_from(["hbm_bytes_s", "flops_bf16", "link_bytes_s"]),
)
def test_faster_hardware_is_never_slower(
    model: str, gpu: Gpu, tp: int, batch: int, context: int, factor: float, what: str
) -> None:
    slow, fast = cost(model, gpu, tp), cost(model, replace(gpu, **{what: getattr(gpu, what) * factor}), tp)
    assert fast.decode_s(batch, context * batch) <= slow.decode_s(batch, context * batch)
    assert fast.prefill_s([(context, batch)]) <= slow.prefill_s([(context, batch)])


@given(models, gpus, sizes, batches, tokens)
def test_more_work_is_never_faster(model: str, gpu: Gpu, tp: int, batch: int, context: int) -> None:
    step = cost(model, gpu, tp)
    assert step.decode_s(batch + 1, context) >= step.decode_s(batch, context)
    assert step.decode_s(batch, context + 1) >= step.decode_s(batch, context)
    assert step.prefill_s([(context + 1, 0)]) >= step.prefill_s([(context, 0)])
    assert step.prefill_s([(context, 1)]) >= step.prefill_s([(context, 0)])
    assert step.prefill_s([(context, 0)], batch, batch) >= step.prefill_s([(context, 0)])


@given(models, gpus, batches, tokens)
def test_fp8_weights_are_never_slower(model: str, gpu: Gpu, batch: int, context: int) -> None:
    bf16, fp8 = cost(model, gpu), cost(model, gpu, flags="--quantization fp8")
    assert fp8.decode_s(batch, context) <= bf16.decode_s(batch, context)
    assert fp8.prefill_s([(context, 0)]) <= bf16.prefill_s([(context, 0)])


def test_a_large_batch_amortises_the_weights() -> None:
    step = cost("llama-3.1-8b", GPUS["h100"], tp=1)
    assert step.decode_s(64, 64 * 500) < 64 * step.decode_s(1, 500) / 15


def test_a_mixture_reads_more_experts_with_more_tokens() -> None:
    step = cost("mixtral-8x7b", GPUS["h200"])
    weights_only = step.decode_s(1, 0), step.decode_s(16, 0)
    assert 2 < weights_only[1] / weights_only[0] < 4  # 2 of 8 experts, then nearly all
