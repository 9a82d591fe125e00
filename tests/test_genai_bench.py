"""genai-bench as a load generator: what it is asked, what is read of it, how it ends. A stand-in is run."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contracts.load_contract import level
from hypothesis import example, given
from hypothesis import strategies as st

from tuner.errors import TaskError, UsageError
from tuner.load import LOAD_GENERATORS
from tuner.load.base import LoadResult, Target
from tuner.load.genai_bench import GenaiBench, read_results
from tuner.metrics import RequestError, summarise
from tuner.objective import OBJECTIVES, Slo, score
from tuner.study import run_study
from tuner.task import make_task
from tuner.workload import LoadLevel

GOOD = {
    **{"ttft": 0.05, "e2e_latency": 0.25, "num_input_tokens": 7, "num_output_tokens": 5},
    **{"error_code": None, "error_message": None},
}
RESULT = {
    "aggregated_metrics": {"run_duration": 2.0, "error_rate": 0, "num_error_requests": 0},
    "individual_request_metrics": [
        *[GOOD] * 3,
        {**GOOD, "num_output_tokens": 4},
        *({**GOOD, "ttft": None, "error_code": code} for code in (500, 503, 408)),
    ],
}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that writes down its arguments, and RESULT where genai-bench would; `SLEEP` before that."""
    program = tmp_path / "genai-bench"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, os, pathlib, sys, time\n"
        "options = dict(word.removeprefix('--').split('=', 1) for word in sys.argv[2:])\n"
        f"pathlib.Path({str(tmp_path)!r}, 'asked.json').write_text(json.dumps(options))\n"
        "time.sleep(float(os.environ.get('SLEEP', 0)))\n"
        "run = pathlib.Path(options['experiment-base-dir'], options['experiment-folder-name'])\n"
        "run.mkdir()\n"
        f"(run / 'D7_5_text-to-text_num_concurrency_2_time_1s.json').write_text({json.dumps(RESULT)!r})\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("GENAI_BENCH", str(program))
    return tmp_path


def put(load: LoadLevel, **options: Any) -> LoadResult:
    target = Target("http://127.0.0.1:9", "m", {"temperature": 0}, "/models/m")
    return GenaiBench().run(target, load, **{"healthy": lambda: True, "timeout_s": 30.0, **options})


def test_it_is_asked_in_its_own_words(stand_in: Path) -> None:
    put(replace(level(), max_time_s=61.0, concurrency=3))
    asked = json.loads((stand_in / "asked.json").read_text())
    assert (asked["traffic-scenario"], asked["num-concurrency"]) == ("D(7,5)", "3")
    assert (asked["max-time-per-run"], asked["max-requests-per-run"]) == ("2", "6")  # minutes
    assert (asked["api-base"], asked["api-model-name"]) == ("http://127.0.0.1:9", "m")
    assert asked["model-tokenizer"] == "/models/m"
    assert json.loads(asked["additional-request-params"]) == {"temperature": 0}


def test_a_shared_prefix_is_its_own_option(stand_in: Path) -> None:
    put(level())
    assert "prefix-len" not in json.loads((stand_in / "asked.json").read_text())
    put(replace(level(), prefix_tokens=4))
    assert json.loads((stand_in / "asked.json").read_text())["prefix-len"] == "4"


def test_failures_are_counted_whatever_its_error_rate_says(stand_in: Path) -> None:
    result = put(level())
    metrics = summarise(result.records, window_s=result.window_s, gpus=1)
    assert (metrics.requests_ok, metrics.requests_failed) == (3, 4)
    assert set(metrics.errors) == set(map(str, set(RequestError) - {RequestError.MALFORMED}))
    assert metrics.output_tok_s == pytest.approx(15 / 2)
    assert metrics.tpot is not None and metrics.tpot.mean == pytest.approx(0.05)


def test_sizes_that_are_drawn_cannot_be_too_short() -> None:
    records = read_results(json.dumps(RESULT).encode(), level("N(7,1)/(5,1)")).records
    assert sum(record.error is None for record in records) == 4


NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["1", "", 408, 1e300])
REQUESTS = st.fixed_dictionaries(dict.fromkeys(GOOD, NUMBERS)) | st.dictionaries(
    st.sampled_from([*GOOD, "x"]), NUMBERS
)
WRITTEN = st.fixed_dictionaries(
    {},
    optional={
        "individual_request_metrics": st.lists(st.just(GOOD) | REQUESTS, max_size=3) | NUMBERS,
        "aggregated_metrics": st.dictionaries(st.just("run_duration"), NUMBERS) | NUMBERS,
    },
)


@given(st.binary(max_size=40) | WRITTEN.map(json.dumps).map(str.encode))
@example(b"[" * 100_000)
@example(b'"\xff"')
@example(json.dumps(RESULT | {"individual_request_metrics": [{**GOOD, "num_input_tokens": 1e400}]}).encode())
@example(json.dumps(RESULT | {"aggregated_metrics": {"run_duration": 0}}).encode())
def test_whatever_it_wrote_is_a_result_that_can_be_scored(content: bytes) -> None:
    result = read_results(content, level())
    metrics = summarise(result.records, window_s=result.window_s, gpus=1)
    assert math.isfinite(metrics.total_tok_s) and metrics.requests_ok + metrics.requests_failed >= 0
    if metrics.latency is not None:
        for objective in OBJECTIVES.values():
            if objective.value(metrics) is not None:
                assert math.isfinite(score(objective, Slo(()), [metrics]).loss)


def test_what_is_no_result_fails_its_level() -> None:
    for content in (b"", b"{}", b"[]", json.dumps({**RESULT, "individual_request_metrics": [{}]}).encode()):
        assert [record.error for record in read_results(content, level()).records] == [RequestError.MALFORMED]


@pytest.mark.parametrize("end", ["time", "engine"])
def test_it_is_ended_in_time(stand_in: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setenv("SLEEP", "600")
    began_s = time.monotonic()
    limits = {"timeout_s": 0.5} if end == "time" else {"healthy": lambda: time.monotonic() < began_s + 0.5}
    result = put(level(), **limits)
    assert time.monotonic() - began_s < 60
    expected = RequestError.TIMEOUT if end == "time" else RequestError.CONNECTION
    assert [record.error for record in result.records] == [expected]
    assert result.aborted == (end == "engine")


def test_a_tool_that_is_not_there_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GENAI_BENCH", raising=False)
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(UsageError, match="genai-bench is not on the PATH"):
        put(level())
    with pytest.raises(UsageError, match="genai-bench is not on the PATH"):
        run_study(make_task({"benchmark": {"tool": "genai-bench"}}), results=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_task_asks_it_for_what_it_does() -> None:
    assert make_task({"benchmark": {"tool": "genai-bench"}}).benchmark.tool in LOAD_GENERATORS
    more = {"tool": "genai-bench", "request_rate": [1], "traffic_scenarios": ["D(1,2)", "P(1,2)/3"]}
    with pytest.raises(TaskError) as refused:
        make_task({"benchmark": more})
    for words in ("benchmark.request_rate", "benchmark.traffic_scenarios[1]: P(1,2)/3 is not among"):
        assert words in str(refused.value)
