"""What engines say of themselves under load: their pages as they write them, and servers without one."""

from __future__ import annotations

import math
import time
from dataclasses import asdict

import pytest
from contracts.scripted_server import Call, Script, ScriptedServer, free_port, hanging, status
from hypothesis import example, given
from hypothesis import strategies as st

from tuner.engines import telemetry
from tuner.engines.telemetry import EngineFigures, Telemetry, read_page, sample, watched

SGLANG = """\
# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m",tp_rank="0"} 6.0
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 2.0
sglang:token_usage{model_name="m",tp_rank="0"} 0.25
sglang:cache_hit_rate{model_name="m",tp_rank="0"} 0.5
"""
VLLM = """\
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.1
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.3
vllm:prefix_cache_queries_total{engine="0",model_name="m"} %d
vllm:prefix_cache_hits_total{engine="0",model_name="m"} %d
vllm:time_to_first_token_seconds_bucket{le="0.001"} 1e+09
"""
LLAMACPP = "llamacpp:requests_processing 2\nllamacpp:requests_deferred 1\nllamacpp:kv_cache_usage_ratio NaN\n"


def page(*texts: str) -> Script:
    """Serves one text after the other, the last again and again."""

    async def script(call: Call) -> None:
        body = texts[min(call.number, len(texts) - 1)].encode()
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    return script


def figures(*texts: str) -> EngineFigures:
    with ScriptedServer(page(*texts)) as server, watched(server.url, every_s=0.04) as telemetry:
        while len(telemetry.seen) < 4:
            time.sleep(0.01)
    return telemetry.figures()


def test_sglang() -> None:
    assert figures(SGLANG) == EngineFigures(6.0, 2.0, 2.0, 0.25, 0.25, 0.5)


def test_vllm_adds_its_replicas_and_takes_the_hits_from_counters() -> None:
    before, during, after = (VLLM % counts for counts in ((1000, 900), (1300, 950), (1400, 1000)))
    found = figures(before, during, after)
    assert (found.running_mean, found.queued_max, found.kv_use_max) == (7.0, 0.0, pytest.approx(0.2))
    assert found.cache_hit_rate == pytest.approx(100 / 400)


def test_llamacpp_says_less() -> None:
    assert figures(LLAMACPP) == EngineFigures(2.0, 1.0, 1.0)


NAMES = [
    "num_running_reqs",
    "token_usage",
    "prefix_cache_hits_total",
    "prefix_cache_queries_total",
    "cache_hit_rate",
]
VALUES = st.sampled_from(["1", "1e400", "-1e308", "1e99", "+", "e", "NaN", "0x1", "1e", "-0", "9" * 5000])
LINES = st.builds(
    "{}:{}{} {}".format,
    st.sampled_from(["sglang", "vllm", "x"]),
    st.sampled_from(NAMES),
    st.sampled_from(["", '{a="}"}', "{", '{a="b"}']),
    VALUES | st.floats().map(str),
)


@given(st.lists(st.lists(LINES | st.text(max_size=20), max_size=8).map("\n".join), max_size=5))
@example(["sglang:token_usage{" * 20_000])
def test_any_pages_give_finite_figures(pages: list[str]) -> None:
    seen = Telemetry([(float(at_s), read_page(text) or {}) for at_s, text in enumerate(pages)])
    figures = [*asdict(seen.figures()).values(), *asdict(seen.figures((0.5, 2.5))).values()]
    assert all(value is None or math.isfinite(value) for value in figures)


@pytest.mark.parametrize("script", [status(404), page("<html>no</html>"), page('{"a": 1}')])
def test_a_server_without_such_a_page_is_asked_once(script: Script) -> None:
    with ScriptedServer(script) as server:
        with watched(server.url, every_s=0.01) as telemetry:
            time.sleep(0.1)
        assert len(server.calls) == 1
    assert telemetry.figures() == EngineFigures()


def test_a_server_that_is_gone_or_hangs_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sample(f"http://127.0.0.1:{free_port()}") is None
    monkeypatch.setattr(telemetry, "_PATIENCE_S", 0.1)
    with ScriptedServer(hanging) as server:
        assert sample(server.url) is None
