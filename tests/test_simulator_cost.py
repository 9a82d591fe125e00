"""The cost model: faster hardware is never slower, more work is never faster, and published figures hold."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.engines.simulator.constants import DEFAULT
from tuner.engines.simulator.cost import StepCost, gpu_seconds
from tuner.engines.simulator.flags import parse_args
from tuner.engines.simulator.gpus import GPUS, Gpu
from tuner.engines.simulator.memory import make_plan
from tuner.engines.simulator.models import find_model
from tuner.engines.simulator.speculation import Speculation

NAMES = "llama-3.2-1b llama-3.1-8b qwen2.5-7b qwen2.5-7b-awq mixtral-8x7b gpt-oss-20b deepseek-v2-lite"
models = st.sampled_from(NAMES.split())
plain = st.sampled_from(["llama-3.2-1b", "llama-3.1-8b", "qwen2.5-7b", "mixtral-8x7b", "deepseek-v2-lite"])
gpus = st.sampled_from([GPUS["h100"], GPUS["h200"], GPUS["b200"]])
sizes = st.sampled_from([2, 4])
batches = st.integers(1, 600)
tokens = st.integers(1, 16384)


def cost(model: str, gpu: Gpu, tp: int = 2, flags: str = "") -> StepCost:
    args = parse_args(["--model-path", model, "--tp-size", str(tp), *flags.split()])
    sizes_of = find_model(model)
    return StepCost(args, make_plan(args, sizes_of, gpu), sizes_of, gpu, DEFAULT)


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


@given(plain, gpus, batches, tokens)
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


def test_four_bit_weights_are_read_faster_and_computed_with_no_faster() -> None:
    plain, awq = cost("qwen2.5-7b", GPUS["l40s"], 1), cost("qwen2.5-7b-awq", GPUS["l40s"], 1)
    assert plain.decode_s(1, 100) > 2 * awq.decode_s(1, 100)
    assert plain.prefill_s([(8192, 0)]) == awq.prefill_s([(8192, 0)])


def test_a_sliding_window_bounds_what_its_layers_read() -> None:
    model = find_model("gpt-oss-20b")
    step = cost("gpt-oss-20b", GPUS["h100"], 1)
    per_token = [
        step.decode(8, 8 * at).cache_read - step.decode(8, 8 * (at - 1)).cache_read for at in (9, 5000)
    ]
    assert per_token[0] / per_token[1] == pytest.approx(model.layers / (model.layers - model.sliding_layers))
    long, short = step.prefill_s([(1000, 50_000)]), step.prefill_s([(1000, 1000)])
    full = cost("llama-3.2-1b", GPUS["h100"], 1)
    assert long / short < full.prefill_s([(1000, 50_000)]) / full.prefill_s([(1000, 1000)])


@pytest.mark.parametrize(("model", "computes"), [("deepseek-v3", True), ("llama-3.1-70b", False)])
def test_a_latent_is_read_once_and_multiplied_by_every_head(model: str, computes: bool) -> None:
    """Drafts to verify make attention longer where every head multiplies what was read for all of them."""
    steps = [cost(model, GPUS["h200"], 8, f) for f in ("", "--speculative-algorithm NGRAM")]
    plain, guessing = (
        gpu_seconds(step.decode(8, 8 * 8000), DEFAULT) - gpu_seconds(step.decode(8, 8 * 4000), DEFAULT)
        for step in steps
    )
    assert (guessing > 2 * plain) if computes else (guessing == pytest.approx(plain))


def test_drafts_cost_and_gain_most_where_few_requests_run() -> None:
    """A batch that fills the GPU computes four to eight tokens for each that it gets."""
    flags = "--speculative-algorithm EAGLE3 --speculative-draft-model-path d"
    plain, guessing = (cost("llama-3.1-8b", GPUS["h100"], 1, each) for each in ("", flags))
    for batch, most in ((1, 1.5), (256, 5.0)):
        ratio = guessing.decode_s(batch, batch * 500) / plain.decode_s(batch, batch * 500)
        assert 1 < ratio < most
    assert guessing.decode_s(256, 128_000) > 2 * plain.decode_s(256, 128_000)


@given(st.integers(1, 7), st.integers(1, 8), st.integers(2, 64), st.floats(0, 1))
def test_more_drafts_of_a_better_model_are_more_tokens_a_step(
    steps: int, topk: int, drafts: int, acceptance: float
) -> None:
    sizes = Speculation("EAGLE", steps, topk, drafts, acceptance)
    assert 0 <= sizes.chance <= 1
    assert replace(sizes, draft_tokens=drafts + 1).chance >= sizes.chance
    assert replace(sizes, topk=topk + 1).chance >= sizes.chance
    assert replace(sizes, acceptance=(1 + acceptance) / 2).chance >= sizes.chance
    expected = sum(sizes.chance**place for place in range(steps + 1))
    rng = Random(0)
    drawn = [sizes.draw(rng) for _ in range(3000)]
    assert set(drawn) <= set(range(1, steps + 2))
    assert sum(drawn) / 3000 == pytest.approx(expected, rel=0.1)
