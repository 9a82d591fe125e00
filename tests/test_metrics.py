"""Metrics: percentiles, tokens inside the window, and what no records at all give."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.metrics import Distribution, RequestError, RequestRecord, summarise


def ok(sent_s: float = 0.0, ttft_s: float = 1.0, e2e_s: float = 2.0, tokens: int = 11) -> RequestRecord:
    """A successful request of 100 input tokens."""
    return RequestRecord(sent_s, ttft_s, e2e_s, 100, tokens, status=200)


def failed(error: RequestError, sent_s: float = 0.0) -> RequestRecord:
    """A failed request that got one token."""
    return RequestRecord(sent_s, 0.5, None, 100, 1, error)


TIMES = st.floats(1e-4, 1e4)
GOOD = st.builds(
    lambda sent_s, ttft_s, more_s, tokens: ok(sent_s, ttft_s, ttft_s + more_s, tokens),
    TIMES,
    TIMES,
    st.floats(0, 1e4),
    st.integers(1, 10**5),
)
RECORDS = st.lists(GOOD | st.builds(failed, st.sampled_from(RequestError), TIMES), max_size=20)


def test_tpot_leaves_the_first_token_out() -> None:
    assert ok(ttft_s=1.0, e2e_s=3.0, tokens=11).tpot_s == pytest.approx(0.2)
    assert ok(tokens=1).tpot_s is None
    assert failed(RequestError.TIMEOUT).tpot_s is None


def test_percentiles_interpolate_linearly() -> None:
    distribution = Distribution.of([4.0, 1.0, 3.0, 2.0])
    assert distribution is not None
    assert (distribution.mean, distribution.p50, distribution.n) == (2.5, 2.5, 4)
    assert distribution.p90 == pytest.approx(3.7)
    assert Distribution.of([]) is None


@given(st.lists(TIMES, min_size=1))
def test_percentiles_are_in_order(values: list[float]) -> None:
    seen = Distribution.of(values)
    assert seen is not None
    ordered = [min(values), seen.p50, seen.p90, seen.p95, seen.p99, max(values)]
    assert all(low <= high * (1 + 1e-9) for low, high in pairwise(ordered))
    assert seen.mean == pytest.approx(np.mean(values))


@pytest.mark.parametrize(
    ("window_s", "tokens"),
    [(0.5, 0), (1.0, 1), (1.5, 6), (2.0, 11), (9.0, 11)],
)
def test_output_tokens_inside_the_window(window_s: float, tokens: float) -> None:
    metrics = summarise([ok(tokens=11)], window_s=window_s, gpus=1)
    assert metrics.output_tok_s * window_s == pytest.approx(tokens)


@pytest.mark.parametrize(("window_s", "tokens"), [(0.9, 0), (1.0, 100), (5.0, 100)])
def test_input_tokens_count_at_the_first_token(window_s: float, tokens: float) -> None:
    metrics = summarise([ok()], window_s=window_s, gpus=1)
    assert metrics.input_tok_s * window_s == pytest.approx(tokens)


def test_single_token_on_either_side_of_the_window() -> None:
    record = ok(ttft_s=1.0, e2e_s=1.0, tokens=1)
    assert summarise([record], window_s=1.0, gpus=1).output_tok_s == 1.0
    assert summarise([record], window_s=0.99, gpus=1).output_tok_s == 0.0


def test_closed_loop_reads_the_rate_that_was_served() -> None:
    """Four streams of 10 tok/s without a pause, the last requests still in flight at the window's end."""
    records = [ok(stream * 0.3 + turn * 2.0, 0.1, 2.0, 20) for stream in range(4) for turn in range(6)]
    rate = summarise(records, window_s=10.0, gpus=1).output_tok_s
    assert rate == pytest.approx(40.0, rel=0.06)


def test_failures_are_counted_by_cause_and_leave_the_latencies_alone() -> None:
    records = [ok(), ok(), failed(RequestError.HTTP), failed(RequestError.HTTP), failed(RequestError.TIMEOUT)]
    metrics = summarise(records, window_s=4.0, gpus=2)
    assert (metrics.requests_ok, metrics.requests_failed) == (2, 3)
    assert metrics.errors == {"http status": 2, "timeout": 1}
    assert metrics.success_rate == pytest.approx(0.4)
    assert metrics.requests_per_s == pytest.approx(0.5)
    assert metrics.total_tok_s == pytest.approx(2 * 111 / 4)
    assert metrics.latency is not None and metrics.latency.n == 2
    assert metrics.gpus == 2


def test_no_records_and_no_window() -> None:
    metrics = summarise([], window_s=0.0, gpus=1)
    assert (metrics.latency, metrics.ttft, metrics.tpot) == (None, None, None)
    assert (metrics.total_tok_s, metrics.requests_per_s, metrics.success_rate) == (0.0, 0.0, 0.0)
    assert summarise([ok()], window_s=0.0, gpus=1).output_tok_s == 0.0


@given(RECORDS, st.floats(1e-3, 1e5))
def test_every_request_is_counted_once(records: list[RequestRecord], window_s: float) -> None:
    metrics = summarise(iter(records), window_s=window_s, gpus=1)
    assert metrics.requests_ok + metrics.requests_failed == len(records)
    assert sum(metrics.errors.values()) == metrics.requests_failed
    assert 0 <= metrics.success_rate <= 1


@given(RECORDS, st.floats(1e-3, 1e5), st.floats(1, 100))
def test_a_longer_window_holds_no_fewer_tokens(
    records: list[RequestRecord], window_s: float, factor: float
) -> None:
    short, long = (summarise(records, window_s=w, gpus=1) for w in (window_s, window_s * factor))
    served = sum(r.output_tokens for r in records if r.error is None)
    inside = short.output_tok_s * window_s
    assert 0 <= inside <= long.output_tok_s * window_s * factor * (1 + 1e-9) + 1e-9
    assert inside <= served * (1 + 1e-9)


# Rates at the window's edges, goodput, confidence.


def test_what_is_served_of_the_warm_up_within_the_window_counts_in_the_rates_alone() -> None:
    before = ok(sent_s=-1.5, ttft_s=0.5, e2e_s=2.5, tokens=11)  # half of its other ten tokens came after 0
    metrics = summarise([ok()], window_s=4.0, gpus=1, warmup=[before, failed(RequestError.HTTP)])
    assert metrics.output_tok_s * 4.0 == pytest.approx(11 + 5)
    assert metrics.requests_per_s * 4.0 == pytest.approx(1 + 5 / 11)
    assert metrics.input_tok_s * 4.0 == 100
    assert metrics.latency is not None and metrics.latency.n == 1
    assert metrics.requests_failed == 0


def test_a_request_counts_in_its_rate_with_the_share_that_was_served() -> None:
    metrics = summarise([ok(tokens=11)], window_s=1.5, gpus=1)
    assert metrics.requests_per_s * 1.5 == pytest.approx(6 / 11)


@pytest.mark.parametrize(
    ("promises", "kept"),
    [
        ({"ttft": 1.0}, 2),
        ({"ttft": 0.9}, 0),
        ({"latency": 3.0}, 1),
        ({"ttft": 1.0, "tpot": 0.15}, 1),
        ({"tpot": 0.05}, 0),
    ],
)
def test_goodput_is_what_kept_every_promise(promises: dict[str, float], kept: int) -> None:
    records = [ok(e2e_s=2.0), ok(e2e_s=5.0), failed(RequestError.TIMEOUT)]
    metrics = summarise(records, window_s=10.0, gpus=1, promises=promises)
    assert metrics.goodput == pytest.approx(kept / 10)
    assert summarise(records, window_s=10.0, gpus=1).goodput is None


def test_gaps_between_tokens_have_a_distribution_of_their_own() -> None:
    metrics = summarise([ok()], window_s=4.0, gpus=1, gaps_s=[0.1, 0.1, 0.4])
    assert metrics.itl is not None
    assert (metrics.itl.mean, metrics.itl.p50, metrics.itl.n) == (pytest.approx(0.2), 0.1, 3)


@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_the_interval_of_a_mean_holds_it_as_often_as_it_says(phi: float) -> None:
    """Also where successive latencies resemble each other: an AR(1) process with coefficient `phi`."""
    rng, held, runs = np.random.default_rng(5), 0, 400
    for _ in range(runs):
        noise, values, value = rng.normal(size=300), [], 0.0
        for shock in noise:
            value = phi * value + shock
            values.append(10 + value)
        seen = Distribution.of(values)
        assert seen is not None and seen.ci95 is not None
        held += abs(seen.mean - 10) <= seen.ci95
    assert 0.90 <= held / runs <= 0.99


def test_few_values_have_no_interval() -> None:
    for n, known in ((9, False), (10, True), (19, True), (20, True)):
        seen = Distribution.of([float(i) for i in range(n)])
        assert seen is not None and (seen.ci95 is not None) == known
