"""The simulated scheduler in virtual time: nothing is lost, memory holds, every flag trades as in SGLang."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.engines.simulator.radix import Tokens
from tuner.engines.simulator.request import Request
from tuner.engines.simulator.virtual import ClosedLoop, build, closed_loop

MODEL = ["--model-path", "llama-3.2-1b-instruct", "--gpu", "h100"]
QUIET = [*MODEL, "--noise", "0"]


def prompt(index: int, length: int, shared: int = 0) -> Tokens:
    """`length` tokens, the first `shared` of which are the same for every index."""
    return (*range(shared), *((index, position) for position in range(length - shared)))


def run(
    flags: str = "",
    *,
    concurrency: int = 16,
    requests: int = 64,
    length: int = 500,
    output: int = 60,
    shared: int = 0,
) -> ClosedLoop:
    _, _, scheduler = build([*QUIET, *flags.split()])
    load = ((prompt(index, length, shared), output) for index in range(requests))
    return closed_loop(scheduler, load, concurrency)


DRAFT = "--speculative-draft-model-path d --speculative-num-steps 3 --speculative-eagle-topk 2 "
DRAFT += "--speculative-num-draft-tokens 6"

loads = st.lists(
    st.tuples(st.integers(1, 400), st.integers(1, 120), st.integers(0, 50), st.booleans()),
    min_size=1,
    max_size=25,
)
flag_sets = st.tuples(
    st.sampled_from(["", "--disable-radix-cache", "--enable-mixed-chunk", "--noise 0.1"]),
    st.sampled_from(
        ["--chunked-prefill-size -1", "--chunked-prefill-size 64", "--chunked-prefill-size 2048"]
    ),
    st.sampled_from(["lpm", "fcfs", "random", "dfs-weight", "lof"]).map("--schedule-policy {}".format),
    st.sampled_from(["0.1", "1", "2"]).map("--schedule-conservativeness {}".format),
    st.sampled_from(["1", "3", "1000"]).map("--max-running-requests {}".format),
    st.integers(540, 5000).map("--max-total-tokens {}".format),
    st.sampled_from(["", "", "--speculative-algorithm NGRAM", f"--speculative-algorithm EAGLE {DRAFT}"]),
).map(" ".join)


@settings(max_examples=120, deadline=None)
@given(loads, flag_sets)
def test_every_request_gets_exactly_its_tokens_within_the_memory(
    load: list[tuple[int, int, int, bool]], flags: str
) -> None:
    _, plan, scheduler = build([*QUIET, *flags.split()])
    requests = [
        Request(prompt(index, length, min(shared, length)), output, ignore_eos=ignore)
        for index, (length, output, shared, ignore) in enumerate(load)
    ]
    now = generated = 0.0
    had: Counter[Request] = Counter()
    for position, request in enumerate(requests):  # half at once, the others one per step
        scheduler.add(request, now)
        if position >= len(requests) // 2 and (step := scheduler.step(now)):
            generated += step.generated
            now += step.duration_s
    while step := scheduler.step(now):
        assert step.duration_s > 0
        assert len(set(step.tokens)) == len(step.tokens) <= step.generated
        generated += step.generated
        for request in step.tokens:
            assert request.generated > had[request]
            had[request] = request.generated
        now += step.duration_s
        assert 0 <= scheduler.kv.free <= plan.kv_tokens
        assert 0 <= scheduler.kv.used <= plan.kv_tokens
        assert len(scheduler.running) <= plan.max_running_requests
        if plan.chunked_prefill_size:
            assert step.new_tokens <= plan.chunked_prefill_size
    assert generated == sum(output for _, output, _, _ in load)
    assert [request.generated for request in requests] == [output for _, output, _, _ in load]
    assert {request.finish_reason for request in requests} == {"length"}
    assert scheduler.kv.used == 0
    assert scheduler.flush_cache()
    assert scheduler.kv.free == plan.kv_tokens


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 14), min_size=1, max_size=15), st.integers(0, 20))
def test_aborted_requests_leave_nothing_behind(order: list[int], steps: int) -> None:
    _, plan, scheduler = build([*QUIET, "--max-total-tokens", "1500", "--chunked-prefill-size", "128"])
    requests = [Request(prompt(index, 200, 50), 100) for index in range(15)]
    for request in requests:
        scheduler.add(request, 0.0)
    for _ in range(steps):
        scheduler.step(0.0)
    for index in order:
        scheduler.abort(requests[index])
    aborted = {requests[index] for index in order}
    while step := scheduler.step(0.0):
        assert not aborted & set(step.tokens)
    assert scheduler.kv.used == 0
    assert scheduler.in_flight == 0
    assert plan.kv_tokens == scheduler.kv.capacity


def test_a_prompt_that_can_never_fit_is_refused() -> None:
    _, _, scheduler = build([*QUIET, "--max-total-tokens", "100"])
    with pytest.raises(ValueError, match=r"Input length \(99 tokens\) exceeds"):
        scheduler.add(Request(prompt(0, 99), 10), 0.0)


def test_same_seed_same_run_and_noise_of_the_size_asked_for() -> None:
    def throughput(*flags: str) -> float:
        _, _, scheduler = build([*MODEL, *flags])
        return closed_loop(scheduler, [(prompt(i, 100), 50) for i in range(32)], 8).output_tok_s

    assert throughput("--random-seed", "7") == throughput("--random-seed", "7")
    runs = [throughput("--random-seed", str(seed)) for seed in range(40)]
    mean = sum(runs) / len(runs)
    cv = (sum((run - mean) ** 2 for run in runs) / (len(runs) - 1)) ** 0.5 / mean
    assert 0.003 < cv < 0.015
    assert throughput("--noise", "0", "--random-seed", "1") == throughput(
        "--noise", "0", "--random-seed", "2"
    )


def test_chunked_prefill_size_trades_throughput_for_shorter_steps() -> None:
    small, large = run("--chunked-prefill-size 256"), run("--chunked-prefill-size 8192")
    assert small.ttft_s > large.ttft_s
    assert small.output_tok_s < large.output_tok_s


def test_mixed_chunk_keeps_decoding_during_long_prefills() -> None:
    def longest_gap(flags: str) -> float:
        _, _, scheduler = build([*QUIET, "--chunked-prefill-size", "512", *flags.split()])
        first = Request(prompt(0, 10), 400)
        scheduler.add(first, 0.0)
        scheduler.step(0.0)
        scheduler.add(Request(prompt(1, 20_000), 1), 0.0)
        gap = longest = 0.0
        while step := scheduler.step(0.0):
            gap += step.duration_s
            if first in step.tokens:
                longest, gap = max(longest, gap), 0.0
        return longest

    assert longest_gap("--enable-mixed-chunk") < longest_gap("") / 5


def test_memory_fraction_sets_the_capacity_and_with_it_the_concurrency() -> None:
    small, large = (
        run(f"--max-prefill-tokens 4096 --mem-fraction-static {f}", concurrency=48, requests=96, length=1000)
        for f in ("0.035", "0.5")
    )
    assert small.ttft_s > 2 * large.ttft_s
    assert small.output_tok_s < large.output_tok_s


def uneven(flags: str) -> ClosedLoop:
    """A load whose answers end one by one, on a KV cache that holds about a third of it."""
    _, _, scheduler = build([*QUIET, "--max-total-tokens", "20000", *flags.split()])
    return closed_loop(scheduler, [(prompt(i, 100), 100 + 37 * i % 900) for i in range(96)], 64)


def test_low_conservativeness_admits_more_and_retracts() -> None:
    bold, careful = uneven("--schedule-conservativeness 0.1"), uneven("--schedule-conservativeness 1.4")
    assert bold.retracted > careful.retracted
    assert bold.ttft_s < careful.ttft_s
    assert len(bold.served) == len(careful.served) == 96


def test_without_a_prefix_cache_answers_of_known_length_are_never_retracted() -> None:
    assert uneven("--disable-radix-cache --schedule-conservativeness 0.1").retracted == 0


def test_retraction_is_logged_as_sglang_does() -> None:
    _, _, scheduler = build([*QUIET, "--max-total-tokens", "3000", "--schedule-conservativeness", "0.1"])
    for index in range(48):
        scheduler.add(Request(prompt(index, 100), 100 + 37 * index % 900), 0.0)
    lines = []
    while step := scheduler.step(0.0):
        lines += [step.retraction] * bool(step.retraction)
    assert lines
    assert all(
        line.startswith("KV cache pool is full. Retract requests. #retracted_reqs: ") for line in lines
    )


def test_lpm_finds_more_in_the_cache_than_fcfs() -> None:
    """Four prompts' families arrive mixed, and the cache holds one family at a time."""

    def cached(policy: str) -> int:
        flags = f"--schedule-policy {policy} --max-total-tokens 3000 --max-running-requests 2"
        _, _, scheduler = build([*QUIET, *flags.split()])
        families = [tuple((family, i) for i in range(1000)) for family in range(4)]
        load = [((*families[i % 4], ("own", i)), 4) for i in range(80)]
        return sum(one.cached_tokens for one in closed_loop(scheduler, load, 80).served)

    assert cached("lpm") > 2 * cached("fcfs")
    assert cached("dfs-weight") > 2 * cached("fcfs")


def test_lpm_lets_one_of_a_batch_go_first_whose_prefix_the_others_share() -> None:
    """Twelve new requests of three families, four by four; three of them fill a prefill."""

    def cached(policy: str) -> int:
        flags = f"--schedule-policy {policy} --max-prefill-tokens 1203"
        _, _, scheduler = build([*QUIET, *flags.split()])
        families = [tuple((family, i) for i in range(400)) for family in range(3)]
        load = [((*families[i // 4], ("own", i)), 2) for i in range(12)]
        return sum(one.cached_tokens for one in closed_loop(scheduler, load, 12).served)

    assert cached("lpm") == 9 * 400
    assert cached("fcfs") < 5 * 400  # three of one family compute it side by side


def test_random_order_is_of_the_seed() -> None:
    def order(*flags: str) -> list[int]:
        _, _, scheduler = build([*QUIET, "--max-running-requests", "1", *flags])
        served = closed_loop(scheduler, [(prompt(i, 50 + i), 2) for i in range(20)], 20).served
        return [one.prompt_tokens for one in served]

    assert order() == list(range(50, 70))
    drawn = order("--schedule-policy", "random")
    assert drawn != order() and sorted(drawn) == order()
    assert drawn == order("--schedule-policy", "random")
    assert drawn != order("--schedule-policy", "random", "--random-seed", "5")


@pytest.mark.parametrize("flag", ["--max-prefill-tokens 1000", "--prefill-max-requests 2"])
def test_what_one_prefill_takes_is_bounded(flag: str) -> None:
    _, _, scheduler = build([*QUIET, *flag.split()])
    for index in range(8):
        scheduler.add(Request(prompt(index, 500), 4), 0.0)
    batches = []
    while step := scheduler.step(0.0):
        batches += [step.new_requests] * bool(step.new_requests)
    assert batches == [2, 2, 2, 2]


def test_lpm_is_fcfs_above_128_waiting() -> None:
    _, _, scheduler = build([*QUIET, "--schedule-policy", "lpm", "--max-running-requests", "1"])
    warm = Request(prompt(0, 300), 1)
    scheduler.add(warm, 0.0)
    scheduler.step(0.0)
    strangers = [Request(prompt(index, 50), 1) for index in range(1, 130)]
    for request in [*strangers, familiar := Request(warm.prompt, 1)]:
        scheduler.add(request, 0.0)
    first, second = scheduler.step(0.0), scheduler.step(0.0)
    assert first is not None
    assert first.tokens == strangers[:1]  # 130 wait
    scheduler.step(0.0)
    assert second is not None
    assert familiar.finish_reason == "length"  # 128 or fewer wait: the longest prefix goes first


def test_prefix_cache_saves_prefill() -> None:
    cached, not_cached = run(shared=450), run("--disable-radix-cache", shared=450)
    assert sum(one.cached_tokens for one in cached.served) == 450 * 48  # all but the first sixteen
    assert sum(one.cached_tokens for one in not_cached.served) == 0
    assert cached.ttft_s < not_cached.ttft_s


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("--tp-size 8 --model-path llama-3.1-70b", "--tp-size 4 --model-path llama-3.1-70b"),
        ("--gpu h200", "--gpu h100"),
        ("--gpu h100", "--gpu l4"),
        ("--quantization fp8 --model-path llama-3.1-8b", "--model-path llama-3.1-8b"),
        ("--kv-cache-dtype fp8_e5m2", ""),
        ("", "--disable-cuda-graph"),
        ("", "--disable-overlap-schedule"),
        ("--cuda-graph-max-bs 16", "--cuda-graph-max-bs 8"),
        ("--stream-interval 16", ""),
        ("", "--max-running-requests 4"),
        ("--model-path qwen2.5-7b-awq", "--model-path qwen2.5-7b"),
        (
            "--speculative-algorithm EAGLE3 --speculative-draft-model-path d --model-path llama-3.1-8b",
            "--model-path llama-3.1-8b",
        ),
        (
            "--speculative-algorithm NGRAM --speculative-acceptance 0.8",
            "--speculative-algorithm NGRAM --speculative-acceptance 0.2",
        ),
    ],
)
def test_throughput_follows_the_flag(better: str, worse: str) -> None:
    assert run(better).output_tok_s > run(worse).output_tok_s


def test_max_running_requests_trades_ttft_for_tpot() -> None:
    few, many = run("--max-running-requests 4"), run()
    assert few.tpot_s < many.tpot_s
    assert few.ttft_s > many.ttft_s


def test_kv_cache_dtype_doubles_the_capacity() -> None:
    plans = [build([*QUIET, "--kv-cache-dtype", dtype])[1] for dtype in ("auto", "fp8_e4m3")]
    assert plans[1].kv_tokens == pytest.approx(2 * plans[0].kv_tokens, rel=1e-5)


def test_a_draft_model_takes_memory_and_speculation_bounds_the_batch() -> None:
    big = ["--model-path", "llama-3.1-70b", "--tp-size", "4"]
    draft = ["--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", "llama-3.2-1b"]
    _, without, _ = build([*QUIET, *big])
    _, plan, _ = build([*QUIET, *big, *draft])
    assert plan.weights_gib > without.weights_gib
    assert plan.kv_tokens < without.kv_tokens
    assert plan.max_running_requests == 48


def test_eagle_speeds_up_one_stream_as_published() -> None:
    """SGLang's documentation, Llama-3.1-8B, H100, MT-bench: 158, 244 (EAGLE-2), 373 (EAGLE-3) tokens/s."""
    plain, second, third = (
        run(f"--model-path llama-3.1-8b {flags}", concurrency=1, requests=6, length=100, output=400)
        for flags in ("", *(f"--speculative-algorithm {a} --speculative-draft-model-path d" for a in EAGLES))
    )
    assert plain.tpot_s / second.tpot_s == pytest.approx(244 / 158, rel=0.1)
    assert plain.tpot_s / third.tpot_s == pytest.approx(373 / 158, rel=0.1)


EAGLES = ("EAGLE", "EAGLE3")
