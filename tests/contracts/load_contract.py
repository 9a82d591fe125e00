"""What every load generator must do. Subclass `LoadGeneratorContract` and override `generator`."""

from __future__ import annotations

import math
import time

import pytest
from contracts.scripted_server import ScriptedServer, free_port, hanging, status, streaming

from tuner.load.base import LoadGenerator, LoadResult, Target
from tuner.metrics import RequestError, summarise
from tuner.scenarios import parse_scenario
from tuner.workload import LoadLevel

MODEL = "m"


def level(
    scenario: str = "D(7,5)",
    *,
    concurrency: int = 2,
    max_requests: int = 6,
    max_time_s: float = 60.0,
    warmup_requests: int = 0,
    seed: int = 1,
) -> LoadLevel:
    """A small load level."""
    return LoadLevel(parse_scenario(scenario), concurrency, max_requests, max_time_s, warmup_requests, seed)


def put(
    generator: LoadGenerator,
    url: str,
    load: LoadLevel,
    *,
    timeout_s: float = 60.0,
    stall_s: float = math.inf,
    **extra: object,
) -> LoadResult:
    """Puts `load` on the server at `url`, which stays healthy, with these extra parameters."""
    target = Target(url, MODEL, extra)
    return generator.run(target, load, healthy=lambda: True, timeout_s=timeout_s, stall_s=stall_s)


class LoadGeneratorContract:
    """Holds for every entry of `LOAD_GENERATORS`; `patience_s` bounds how long starting one may take."""

    patience_s = 20.0

    @pytest.fixture
    def generator(self) -> LoadGenerator:
        """The load generator under test."""
        raise AssertionError("a subclass gives its load generator")

    def test_records_every_request(self, generator: LoadGenerator) -> None:
        with ScriptedServer(streaming(pause_s=0.002)) as server:
            result = put(generator, server.url, level())
        assert len(result.records) == 6
        assert not result.aborted
        assert 0 < result.window_s < math.inf
        for record in result.records:
            assert record.error is None
            assert (record.input_tokens, record.output_tokens) == (7, 5)
            assert record.sent_s >= 0
            assert record.ttft_s is not None and record.e2e_s is not None
            assert 0 < record.ttft_s <= record.e2e_s

    def test_keeps_to_the_concurrency(self, generator: LoadGenerator) -> None:
        with ScriptedServer(streaming(pause_s=0.005)) as server:
            put(generator, server.url, level(concurrency=3, max_requests=12))
        assert server.most_in_flight == 3

    def test_counts_the_tokens_of_the_usage_not_the_events(self, generator: LoadGenerator) -> None:
        with ScriptedServer(streaming(per_event=4, prompt_tokens=11)) as server:
            result = put(generator, server.url, level("D(7,10)"))
        assert {(r.input_tokens, r.output_tokens) for r in result.records} == {(11, 10)}

    def test_sends_the_model_and_the_extra_parameters(self, generator: LoadGenerator) -> None:
        with ScriptedServer(streaming()) as server:
            put(generator, server.url, level(), temperature=0.25)
        bodies = [call.body for call in server.calls if "max_tokens" in call.body]
        assert bodies
        assert all((body["model"], body["temperature"]) == (MODEL, 0.25) for body in bodies)

    def test_leaves_the_warmup_out(self, generator: LoadGenerator) -> None:
        with ScriptedServer(streaming()) as server:
            result = put(generator, server.url, level(warmup_requests=3))
        assert len(result.records) == 6

    def test_records_a_bad_status(self, generator: LoadGenerator) -> None:
        with ScriptedServer(status(503)) as server:
            result = put(generator, server.url, level(max_requests=3, max_time_s=5))
        metrics = summarise(result.records, window_s=result.window_s, gpus=1)
        assert metrics.requests_ok == 0
        assert set(metrics.errors) == {RequestError.HTTP}

    def test_survives_a_server_that_is_not_there(self, generator: LoadGenerator) -> None:
        url = f"http://127.0.0.1:{free_port()}"
        result = put(generator, url, level(max_requests=3, max_time_s=2), timeout_s=self.patience_s)
        metrics = summarise(result.records, window_s=result.window_s, gpus=1)
        assert metrics.requests_ok == 0
        assert metrics.requests_failed > 0

    def test_ends_at_its_time_limit(self, generator: LoadGenerator) -> None:
        with ScriptedServer(hanging) as server:
            started_s = time.perf_counter()
            result = put(generator, server.url, level(max_time_s=0.5), timeout_s=2.0)
        assert time.perf_counter() - started_s < self.patience_s
        assert result.records
        assert {record.error for record in result.records} == {RequestError.TIMEOUT}

    def test_stops_when_the_engine_is_not_healthy(self, generator: LoadGenerator) -> None:
        with ScriptedServer(hanging) as server:
            started_s = time.perf_counter()
            result = generator.run(
                Target(server.url, MODEL, {}),
                level(),
                healthy=lambda: time.perf_counter() - started_s < 0.5,
                timeout_s=600,
            )
        assert time.perf_counter() - started_s < self.patience_s
        assert result.aborted
