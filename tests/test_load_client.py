"""The native load generator: what it sends, when it ends, what its window is. Real sockets on loopback."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from contracts.load_contract import LoadGeneratorContract, level
from contracts.load_contract import put as put_on
from contracts.scripted_server import (
    END,
    HEAD,
    Call,
    ScriptedServer,
    chunk,
    event,
    free_port,
    hanging,
    status,
    streaming,
    token_events,
)

from tuner.load import LOAD_GENERATORS, client, phase
from tuner.load.base import GLANCES, Glance, LoadGenerator, LoadResult, Target
from tuner.load.client import NativeClient
from tuner.load.http import Address
from tuner.metrics import RequestError, summarise
from tuner.prompts import prompts

put = partial(put_on, NativeClient())


class TestNativeClient(LoadGeneratorContract):
    @pytest.fixture
    def generator(self) -> LoadGenerator:
        return NativeClient()


def test_table_names_each_generator_as_it_names_itself() -> None:
    assert "native" in LOAD_GENERATORS
    assert all(name == generator.name for name, generator in LOAD_GENERATORS.items())


# What is sent.


def test_request_asks_for_a_stream_with_usage_and_no_early_end() -> None:
    with ScriptedServer(streaming()) as server:
        put(server.url + "/", level("D(3,5)", max_requests=1))
    [call] = server.calls
    assert call.path == "/v1/completions"
    prompt = call.body.pop("prompt")
    assert len(prompt.split()) == 3
    assert call.body == {
        "model": "m",
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }


def test_extra_params_win() -> None:
    with ScriptedServer(streaming()) as server:
        result = put(server.url, level(), ignore_eos=False, max_tokens=2, top_k=1)
    assert all(
        (c.body["ignore_eos"], c.body["max_tokens"], c.body["top_k"]) == (False, 2, 1) for c in server.calls
    )
    assert {(r.error, r.output_tokens) for r in result.records} == {(None, 2)}


def test_same_seed_sends_the_same_requests() -> None:
    seen = []
    for _ in range(2):
        with ScriptedServer(streaming()) as server:
            put(server.url, level("U(5,20)/(2,9)", warmup_requests=2, max_requests=8))
        seen.append(Counter(call.raw for call in server.calls))
    assert seen[0] == seen[1]
    assert set(seen[0].values()) == {1}


def test_requests_beyond_the_prepared_ones_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    load = level(max_requests=5)
    target = Target("http://127.0.0.1:1", "m", {})
    prepared = [client.Requests(target, load)[i] for i in range(5)]
    monkeypatch.setattr(client, "PREPARED_BYTES", 1)
    assert [client.Requests(target, load)[i] for i in range(5)] == prepared


def test_warmup_goes_first_and_the_measured_ones_follow_without_a_pause() -> None:
    load = level(concurrency=4, warmup_requests=6, max_requests=5)
    with ScriptedServer(streaming(pause_s=0.002)) as server:
        result = put(server.url, load)
    texts = [prompt.text for prompt in prompts(load)]
    sent = [call.body["prompt"] for call in server.calls]
    assert set(sent[:6]) == set(texts[:6])
    assert set(sent[6:]) == set(texts[6:])
    assert len(result.records) == 5
    assert len(result.warmup) == 3  # 4 at a time: one slot came free and began to measure
    assert all(r.sent_s < 0 for r in result.warmup)


def test_connections_are_kept() -> None:
    with ScriptedServer(streaming()) as server:
        put(server.url, level(concurrency=2, max_requests=10, warmup_requests=4))
    assert server.connections == 2


def test_address_refuses_what_is_no_base_url() -> None:
    for url in ("127.0.0.1:8000", "ftp://h", "http://", ""):
        with pytest.raises(ValueError, match="base URL"):
            Address.of(url)
    assert Address.of("http://[::1]:80/x/").path == "/x"


def test_prompts_reach_the_server_as_json() -> None:
    with ScriptedServer(streaming()) as server:
        put(server.url, level("D(50,2)", max_requests=1))
    assert json.loads(server.calls[0].raw) == server.calls[0].body


def test_gaps_are_between_reads_of_tokens() -> None:
    with ScriptedServer(streaming(pause_s=0.01)) as server:
        result = put(server.url, level("D(7,6)", max_requests=4))
    assert len(result.gaps_s) == 4 * 5
    spans = [r.e2e_s - r.ttft_s for r in result.records if r.e2e_s is not None and r.ttft_s is not None]
    assert sum(result.gaps_s) == pytest.approx(sum(spans), rel=1e-3)


# When it ends, and what its window is.


def test_stops_sending_when_the_time_is_up_and_drains() -> None:
    with ScriptedServer(streaming(pause_s=0.05)) as server:
        result = put(server.url, level("D(7,10)", concurrency=2, max_requests=1000, max_time_s=0.4))
    assert 2 <= len(result.records) < 1000
    assert result.window_s == pytest.approx(0.4)
    assert all(r.error is None and r.sent_s <= 0.4 for r in result.records)
    ends = [r.sent_s + r.e2e_s for r in result.records if r.e2e_s is not None]
    assert max(ends) > 0.4


def test_window_ends_when_a_slot_has_nothing_more_to_send() -> None:
    with ScriptedServer(streaming(pause_s=0.005)) as server:
        result = put(server.url, level("D(7,20)", concurrency=3, max_requests=3))
    first_end = min(r.sent_s + r.e2e_s for r in result.records if r.e2e_s is not None)
    assert result.window_s >= first_end
    metrics = summarise(result.records, window_s=result.window_s, gpus=1)
    assert 20 < metrics.output_tok_s * metrics.duration_s < 60.01


def test_fewer_requests_than_concurrency() -> None:
    with ScriptedServer(streaming()) as server:
        result = put(server.url, level(concurrency=16, max_requests=2))
    assert [r.error for r in result.records] == [None, None]
    assert result.window_s > 0


def test_time_limit_in_the_warmup_tells_why() -> None:
    with ScriptedServer(hanging) as server:
        result = put(server.url, level(warmup_requests=2), timeout_s=1.0)
    assert [r.error for r in result.records] == [RequestError.TIMEOUT] * 2


def test_endless_stream_ends_at_the_time_limit() -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD)
        while True:
            await call.send(chunk(event({"choices": [{"text": "x"}]})), pause_s=0.01)

    with ScriptedServer(script) as server:
        result = put(server.url, level(max_requests=2), timeout_s=1.0)
    assert {r.error for r in result.records} == {RequestError.TIMEOUT}
    assert all(r.ttft_s is not None for r in result.records)


def test_unhealthy_engine_aborts_at_once_though_every_request_is_refused() -> None:
    started_s = time.perf_counter()
    asked = []

    def healthy() -> bool:
        asked.append(time.perf_counter())
        return len(asked) < 3

    target = Target(f"http://127.0.0.1:{free_port()}", "m", {})
    result = NativeClient().run(target, level(max_requests=10**6), healthy=healthy, timeout_s=600)
    assert result.aborted
    assert {r.error for r in result.records} == {RequestError.CONNECTION}
    assert len(result.records) < 100  # backs off instead of spinning
    assert time.perf_counter() - started_s < 10


def test_in_flight_requests_of_an_aborted_run_lost_their_connection() -> None:
    with ScriptedServer(hanging) as server:
        target = Target(server.url, "m", {})
        result = NativeClient().run(target, level(), healthy=lambda: False, timeout_s=600)
    assert result.aborted
    assert [r.error for r in result.records] == [RequestError.CONNECTION] * 2


def test_a_healthy_that_raises_ends_the_run_and_is_passed_on() -> None:
    def healthy() -> bool:
        raise RuntimeError("no such process")

    with ScriptedServer(hanging) as server, pytest.raises(RuntimeError, match="no such process"):
        NativeClient().run(Target(server.url, "m", {}), level(), healthy=healthy, timeout_s=600)
    assert gc.isenabled()


def test_runs_in_a_thread_and_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_new_loop", asyncio.new_event_loop)
    results: list[LoadResult] = []
    with ScriptedServer(streaming()) as server:
        thread = threading.Thread(target=lambda: results.append(put(server.url, level())))
        thread.start()
        thread.join(30)
    assert [r.error for r in results[0].records] == [None] * 6


def test_lag_of_the_client_is_seen() -> None:
    def healthy() -> bool:
        time.sleep(0.3)
        return True

    with ScriptedServer(streaming(pause_s=0.1)) as server:
        target = Target(server.url, "m", {})
        result = NativeClient().run(target, level("D(7,8)", max_requests=2), healthy=healthy, timeout_s=60)
    assert result.client_lag_s > 0.2


def test_many_answers_are_read_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phase, "UNREAD_BYTES", 1)
    with ScriptedServer(streaming()) as server:
        result = put(server.url, level(max_requests=9))
    assert [r.error for r in result.records] == [None] * 9


LIMITED = """
import resource, sys
from dataclasses import replace
from contracts.load_contract import level, put
from tuner.failures import TrialFailed
from tuner.load.client import NativeClient

url, *numbers = sys.argv[1:]
soft, hard, streams, rate = map(int, numbers)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
load = level("D(3,2)", concurrency=streams, max_requests=streams)
try:
    result = put(NativeClient(), url, replace(load, request_rate=rate or None))
except TrialFailed as failed:
    print(failed.failure.cause, failed.failure.detail)
else:
    print({str(record.error) for record in result.records})
"""


@pytest.mark.parametrize(
    ("soft", "hard", "streams", "rate", "said"),
    [
        (128, 4096, 150, 0, "{'None'}"),
        (128, 180, 150, 0, "internal error 150 streams are more than this process may open files: 180"),
        (128, 180, 150, 100, "{'None'}"),
    ],
)
def test_streams_are_not_held_up_by_how_many_files_may_be_open(
    soft: int, hard: int, streams: int, rate: int, said: str
) -> None:
    limits = [str(soft), str(hard), str(streams), str(rate)]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with ScriptedServer(streaming(pause_s=0.2)) as server:
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, server.url, *limits],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert said in done.stdout, done.stderr


def test_what_a_refusal_says_is_kept() -> None:
    with ScriptedServer(status(400, b'{"message": "too\n long"}')) as server:
        result = put(server.url, level(max_requests=3))
    assert result.said == '{"message": "too long"}'
    with ScriptedServer(streaming()) as server:
        assert put(server.url, level()).said == ""


def test_a_glance_counts_to_the_first_token_not_to_the_head_that_comes_before_it() -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD, pause_s=0.2)  # as uvicorn does, while the engine reads the prompt
        await call.send(*(chunk(each) for each in token_events(5)), END, pause_s=0.002)

    glances: list[Glance] = []
    with ScriptedServer(script) as server:
        result = NativeClient().run(
            Target(server.url, "m", {}), level(), healthy=lambda: True, timeout_s=60, seen=glances.append
        )
    whole = summarise(result.records, window_s=1.0, gpus=1)
    assert glances and whole.ttft is not None and whole.ttft.mean >= 0.2
    for glance in glances:
        part = summarise(glance.records, window_s=1.0, gpus=1)
        assert part.ttft is not None and part.ttft.mean >= 0.2


def test_a_server_that_is_busy_with_the_warm_up_is_not_stalled() -> None:
    one_at_a_time = asyncio.Semaphore(1)

    async def script(call: Call) -> None:
        async with one_at_a_time:
            await streaming(pause_s=0.02)(call)

    with ScriptedServer(script) as server:
        load = level("D(7,10)", concurrency=8, max_requests=8, warmup_requests=8)
        result = put(server.url, load, stall_s=1.0)  # served for a quarter of a second each, without a pause
    assert not result.stalled
    assert [record.error for record in result.records] == [None] * 8


@pytest.mark.parametrize("rate", [None, 20.0])
def test_heads_without_a_token_are_no_sign_of_life(rate: float | None) -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD)
        await hanging(call)

    load = replace(level(concurrency=64, max_requests=100), request_rate=rate)
    started_s = time.monotonic()
    with ScriptedServer(script) as server:
        result = put(server.url, load, stall_s=1.0)
    assert result.stalled and len(server.calls) > 1
    assert time.monotonic() - started_s < 4.5  # the last request is due after five seconds


def test_glances_tell_of_the_requests_that_have_ended() -> None:
    glances: list[Glance] = []
    load = level("D(7,40)", concurrency=8, max_requests=80)
    with ScriptedServer(streaming(pause_s=0.01)) as server:
        result = NativeClient().run(
            Target(server.url, "m", {}), load, healthy=lambda: True, timeout_s=60, seen=glances.append
        )
    assert [glance.share for glance in glances] == list(GLANCES)[: len(glances)] and glances
    counts = [len(glance.records) for glance in glances]
    assert counts == sorted(counts) and counts[0] >= 80 * GLANCES[0] - 8
    for glance in glances:
        ended = [r for r in result.records if r.e2e_s and r.sent_s + r.e2e_s <= glance.window_s]
        part, whole = (summarise(own, window_s=glance.window_s, gpus=1) for own in (glance.records, ended))
        assert part.latency is not None and whole.latency is not None
        assert part.latency.mean == pytest.approx(
            whole.latency.mean, rel=0.2
        )  # the last read is of [DONE], after three more pauses
        assert part.output_tok_s == pytest.approx(whole.output_tok_s, rel=0.2)
