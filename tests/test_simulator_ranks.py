"""Data-parallel ranks: requests are spread as SGLang does, and every rank works on its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.engines.simulator.flags import parse_args
from tuner.engines.simulator.launch import prepare
from tuner.engines.simulator.ranks import Ranks
from tuner.engines.simulator.request import Request
from tuner.evaluate import Report, evaluate
from tuner.rig import rig
from tuner.task import make_task

QUIET = ["--model-path", "llama-3.2-1b-instruct", "--noise", "0"]


def ranks(flags: str) -> Ranks:
    args = parse_args([*QUIET, *flags.split()])
    _, schedulers = prepare(args, lambda line: None)
    return Ranks(args.load_balance_method, schedulers)


def asked(index: int, length: int, output: int) -> Request:
    return Request(tuple((index, position) for position in range(length)), output, ignore_eos=True)


def test_requests_go_round_unless_told_otherwise() -> None:
    lengths = [4000, 10, 4000, 10]
    for method, expected in (
        ("round_robin", [[4000, 4000], [10, 10]]),
        ("auto", [[4000, 4000], [10, 10]]),
        ("total_requests", [[4000, 4000], [10, 10]]),
        ("total_tokens", [[4000, 10], [10, 4000]]),
    ):
        both = ranks(f"--dp-size 2 --load-balance-method {method}")
        for index, length in enumerate(lengths):
            both.add(asked(index, length, 4), 0.0)
        waiting = [[len(request.prompt) for request in rank.waiting] for rank in both.schedulers]
        assert [sorted(each) for each in waiting] == [sorted(each) for each in expected], method


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40), st.floats(0, 0.2)), min_size=1, max_size=20),
    st.integers(1, 4),
    st.sampled_from(["round_robin", "total_requests", "total_tokens"]),
)
def test_every_request_is_served_once_and_time_never_goes_back(
    load: list[tuple[int, int, float]], size: int, method: str
) -> None:
    them = ranks(f"--dp-size {size} --load-balance-method {method}")
    assert len(them.schedulers) == size
    requests = [asked(i, length, output) for i, (length, output, _) in enumerate(load)]
    due = [(sum(gap for _, _, gap in load[: i + 1]), request) for i, request in enumerate(requests)]
    now, generated = 0.0, 0
    while due or not them.idle:
        until = due[0][0] if due else float("inf")
        then, step = them.advance(now, until)
        assert now <= then <= until
        now = then
        generated += step.generated if step else 0
        while due and due[0][0] <= now:
            them.add(due.pop(0)[1], now)
    assert generated == sum(output for _, output, _ in load)
    assert {request.finish_reason for request in requests} == {"length"}
    assert sum(rank.kv.used for rank in them.schedulers) == 0
    assert them.flush_cache()


def trial(config: dict[str, Any], tmp_path: Any, *, virtual: bool = True) -> Report:
    task = make_task(
        {
            "model": {"id_or_path": "llama-3.1-8b-instruct"},
            "engine": {"args": {"noise": 0}},
            "benchmark": {
                "traffic_scenarios": ["D(200,50)"],
                "num_concurrency": [32],
                "max_requests_per_iteration": 96,
            },
        }
    )
    measured_by = rig(task, virtual=virtual)
    *_, last = evaluate(
        task,
        config,
        engine=measured_by.engine,
        load=measured_by.load,
        clock=measured_by.clock,
        seed=0,
        gpu_ids=[],
        log_path=tmp_path / "log",
    )
    assert last.failure is None and last.step is not None
    return last


def test_two_ranks_serve_more_of_which_each_has_its_own_memory(tmp_path: Any) -> None:
    one, two = trial({}, tmp_path), trial({"dp-size": 2}, tmp_path)
    assert one.step is not None and two.step is not None
    assert two.step.metrics.gpus == 2
    assert two.info.kv_tokens == one.info.kv_tokens
    assert 1.1 < two.step.metrics.output_tok_s / one.step.metrics.output_tok_s < 2


def test_attention_ranks_share_the_gpus_and_keep_more_tokens_of_a_latent(tmp_path: Any) -> None:
    def kv_tokens(flags: str) -> int:
        args = parse_args(["--model-path", "deepseek-v2-lite", "--tp-size", "4", *flags.split()])
        plan, schedulers = prepare(args, lambda line: None)
        assert len(schedulers) == 1
        return plan.kv_tokens

    shared, own = kv_tokens(""), kv_tokens("--dp-size 4 --enable-dp-attention")
    assert 3 < own / shared < 4  # the attention's weights stand on every rank


@pytest.mark.parametrize("config", [{"dp-size": 2}, {"speculative-algorithm": "NGRAM"}])
def test_over_http_it_is_the_same(config: dict[str, Any], tmp_path: Any) -> None:
    virtual, real = trial(config, tmp_path), trial(config, tmp_path, virtual=False)
    assert virtual.step is not None and real.step is not None
    assert real.step.metrics.requests_ok == 96
    tokens = [[r.output_tokens for r in of.step.load.records] for of in (virtual, real) if of.step]
    assert tokens[0] == tokens[1]
    assert virtual.info.effective_args.keys() <= real.info.effective_args.keys()
    json.dumps(dict(virtual.info.effective_args))
