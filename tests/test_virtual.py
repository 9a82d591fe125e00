"""Virtual time: the load client without a clock, trials as over HTTP, and a whole study in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from contracts.load_contract import level
from hypothesis import given
from hypothesis import strategies as st

from tuner import run_study
from tuner.engines.simulator.in_process import VirtualEngine, VirtualServer
from tuner.errors import UsageError
from tuner.evaluate import Report, evaluate
from tuner.failures import Cause, Stage
from tuner.load.base import GLANCES, Glance, LoadResult, Target
from tuner.load.virtual import TURN_S, VirtualClient
from tuner.metrics import RequestError, summarise
from tuner.predict import predict
from tuner.report import html, terminal
from tuner.results import ResultStore
from tuner.rig import rig
from tuner.task import Task, make_task
from tuner.workload import LoadLevel

MODEL = "llama-3.2-1b-instruct"


def task_with(**sections: Any) -> Task:
    benchmark = {
        "traffic_scenarios": ["D(64,16)"],
        "num_concurrency": [1, 4],
        "max_requests_per_iteration": 12,
        **sections.pop("benchmark", {}),
    }
    return make_task({"model": {"id_or_path": MODEL}, "benchmark": benchmark, **sections})


# --- the load client -----------------------------------------------------------------------------------


@dataclass(eq=False)
class Call:
    """A call of `Clockwork`."""

    prompt: tuple[int, ...]
    wanted: int
    generated: int = 0
    finish_reason: str | None = None
    error: str = ""


class Clockwork:
    """Serves everything at once, a token each in every step of `step_s`; `refuses` is a status for all."""

    def __init__(self, step_s: float = 0.1, refuses: int | None = None, answers: int = 5) -> None:
        self.now_s, self.step_s, self.refuses, self.answers = 7.0, step_s, refuses, answers
        self.calls: list[Call] = []
        self.end_s = math.inf  # of the step that is under way
        self.sent_s: list[float] = []
        self.aborted: list[Call] = []
        self.most = 0

    def submit(self, body: bytes, at_s: float) -> Call | int:
        self.sent_s.append(at_s)
        if self.refuses:
            return self.refuses
        self.calls.append(call := Call((1, 2, 3), self.answers))
        self.most = max(self.most, len(self.calls))
        return call

    def advance(self, until_s: float) -> list[Call] | None:
        if not self.calls:
            return None
        self.end_s = min(self.end_s, self.now_s + self.step_s)
        if self.end_s > until_s:
            self.now_s = until_s
            return None
        self.now_s, self.end_s = self.end_s, math.inf
        heard, self.calls = self.calls, []
        for call in heard:
            call.generated += 1
            if call.generated < call.wanted:
                self.calls.append(call)
            else:
                call.finish_reason = "length"
        return heard

    def abort(self, request: Call) -> None:
        self.aborted.append(request)


def put(server: Any, load: LoadLevel, *, timeout_s: float = 1e6, **limits: Any) -> LoadResult:
    client = VirtualClient(lambda: server)
    target = Target("virtual:", "m", limits.pop("extra", {}))
    return client.run(target, load, healthy=lambda: True, timeout_s=timeout_s, **limits)


def test_a_closed_loop_keeps_to_its_concurrency_and_counts_its_own_seconds() -> None:
    server = Clockwork()
    result = put(server, level(concurrency=3, max_requests=12))
    assert server.most == 3
    assert len(result.records) == 12
    assert result.window_s == pytest.approx(4 * 0.5, abs=12 * TURN_S)
    assert len({record.sent_s for record in result.records}) == 12  # who are free together send in turn
    for record in result.records:
        assert record.error is None
        assert record.ttft_s == pytest.approx(0.1, abs=3 * TURN_S)
        assert record.e2e_s == pytest.approx(0.5, abs=3 * TURN_S)
        assert (record.input_tokens, record.output_tokens) == (3, 5)
    assert list(result.gaps_s) == pytest.approx([0.1] * 48)


def test_requests_of_the_warm_up_that_are_in_flight_count_with_what_came_in_the_window() -> None:
    result = put(Clockwork(), level(concurrency=2, max_requests=4, warmup_requests=3))
    assert len(result.records) == 4
    (warm,) = result.warmup
    assert warm.sent_s == pytest.approx(0.0, abs=2 * TURN_S)
    metrics = summarise(result.records, window_s=result.window_s, gpus=1, warmup=result.warmup)
    assert metrics.output_tok_s == pytest.approx(20, rel=0.15)  # two streams, one token in 0.1 s


def test_an_open_loop_sends_when_requests_are_due_and_holds_what_finds_no_room() -> None:
    server = Clockwork()
    load = replace(level(max_requests=8), request_rate=4.0, arrivals="constant", concurrency=100)
    result = put(server, load)
    assert [s - 7.0 for s in server.sent_s] == pytest.approx([n / 4 for n in range(8)])
    assert result.held == 0 and result.window_s == pytest.approx(2.0)
    assert {record.late_s for record in result.records} == {0.0}
    held = put(Clockwork(), replace(load, concurrency=1))
    assert held.held == 7
    cut = put(Clockwork(), replace(load, concurrency=1, warmup_requests=2), timeout_s=1.6)
    assert [record.number for record in cut.records] == list(range(len(cut.records)))
    assert len(held.records) == 8
    assert max(record.late_s or 0.0 for record in held.records) == pytest.approx(7 * 0.25, abs=0.11)


def test_time_ends_a_level_and_what_is_in_flight_is_awaited() -> None:
    result = put(Clockwork(), level(concurrency=1, max_requests=100, max_time_s=1.3))
    assert len(result.records) == 3
    assert result.window_s == pytest.approx(1.3, abs=0.21)
    assert {record.error for record in result.records} == {None}


@pytest.mark.parametrize("rate", [None, 2.0])
def test_what_is_in_flight_at_the_deadline_has_timed_out(rate: float | None) -> None:
    server = Clockwork(answers=1000)
    load = replace(level(concurrency=2), request_rate=rate, arrivals="constant")
    result = put(server, load, timeout_s=20.0)
    errors = [record.error for record in result.records]
    assert errors and set(errors) == {RequestError.TIMEOUT}
    assert len(server.aborted) == 2
    assert len(errors) == (2 if rate is None else 6)  # of an open loop also those that waited for room
    assert not result.stalled


def test_a_server_that_takes_no_step_any_more_has_stalled() -> None:
    result = put(Clockwork(step_s=math.inf), level(), stall_s=30.0)
    assert result.stalled
    assert {record.error for record in result.records} == {RequestError.TIMEOUT}


@pytest.mark.parametrize("rate", [None, 50.0])
def test_refused_requests_have_their_status_and_do_not_flood(rate: float | None) -> None:
    server = Clockwork(refuses=503)
    load = replace(level(max_requests=40, max_time_s=1.0), request_rate=rate, arrivals="constant")
    result = put(server, load)
    assert {(r.error, r.status) for r in result.records} == {(RequestError.HTTP, 503)}
    assert len(result.records) <= 40


def test_answers_that_are_cut_short_are_told() -> None:
    result = put(Clockwork(), level("D(7,6)"))
    assert {record.error for record in result.records} == {RequestError.TRUNCATED}


def test_glances_and_the_end_of_a_trial_that_nobody_waits_for() -> None:
    seen: list[Glance] = []
    put(Clockwork(), level(concurrency=1, max_requests=8), seen=seen.append)
    assert [glance.share for glance in seen] == list(GLANCES)
    assert [len(glance.records) for glance in seen] == [2, 4, 6]
    client = VirtualClient(Clockwork)
    left = client.run(
        Target("virtual:", "m", {}),
        level(concurrency=1, max_requests=8),
        healthy=lambda: False,
        timeout_s=99.0,
        seen=seen.append,
    )
    assert left.aborted and len(left.records) < 8


# --- trials --------------------------------------------------------------------------------------------


def run(
    task: Task, folder: Path, config: dict[str, Any] | None = None, seed: int = 0, **options: Any
) -> list[Report]:
    measured_by = rig(task, virtual=True, seed=seed)
    return list(
        evaluate(
            task,
            config or {},
            engine=measured_by.engine,
            load=measured_by.load,
            clock=measured_by.clock,
            seed=0,
            gpu_ids=[],
            log_path=folder / "engine.log",
            **options,
        )
    )


def test_a_trial_in_virtual_time_is_one_over_http_but_for_the_waiting(tmp_path: Path) -> None:
    task = task_with(engine={"args": {"noise": 0}})
    *_, virtual = run(task, tmp_path, {"schedule-policy": "lpm"})
    real_rig = rig(task)
    *_, real = evaluate(
        task,
        {"schedule-policy": "lpm"},
        engine=real_rig.engine,
        load=real_rig.load,
        seed=0,
        gpu_ids=[],
        log_path=tmp_path / "real.log",
    )
    assert virtual.step is not None and real.step is not None
    sizes = [[(r.input_tokens, r.output_tokens) for r in of.step.load.records] for of in (virtual, real)]
    assert sizes[0] == sizes[1]
    assert virtual.info.kv_tokens == real.info.kv_tokens
    assert virtual.info.effective_args["chunked-prefill-size"] == 8192
    assert virtual.info.version == "simulator-0.1.0 in virtual time"
    tpots = [of.step.metrics.tpot.p50 for of in (virtual, real) if of.step and of.step.metrics.tpot]
    assert tpots[0] == pytest.approx(tpots[1], rel=0.25)  # of a busy machine


@pytest.mark.parametrize(
    ("config", "stage", "cause"),
    [
        ({"mem-fraction-static": 0.01}, Stage.START, Cause.OUT_OF_MEMORY),
        ({"mem-fraction-static": 0.99}, Stage.START, Cause.OUT_OF_MEMORY),
        ({"tp-size": 3}, Stage.START, Cause.INVALID_FLAGS),
        ({"no-such-flag": 1}, Stage.CHECK, Cause.INVALID_FLAGS),
        ({"context-length": 80}, Stage.LOAD, Cause.REQUEST_ERRORS),
        ({"max-total-tokens": 70}, Stage.LOAD, Cause.REQUEST_ERRORS),
    ],
)
def test_what_fails_over_http_fails_in_virtual_time(
    config: dict[str, Any], stage: Stage, cause: Cause, tmp_path: Path
) -> None:
    task = task_with(benchmark={"traffic_scenarios": ["D(64,32)"], "max_time_per_iteration": 1})
    found = []
    for virtual in (True, False):
        measured_by = rig(task, virtual=virtual)
        *_, last = evaluate(
            task,
            config,
            engine=measured_by.engine,
            load=measured_by.load,
            clock=measured_by.clock,
            seed=0,
            gpu_ids=[],
            log_path=tmp_path / "engine.log",
        )
        assert last.failure is not None
        found.append(last.failure)
        if stage is Stage.START:
            assert "SIMULATION" in (tmp_path / "engine.log").read_text()
    assert {(failure.stage, failure.cause) for failure in found} == {(stage, cause)}
    assert found[0].exit_code == found[1].exit_code


def test_a_trial_has_its_time_limit_in_the_seconds_that_it_would_take(tmp_path: Path) -> None:
    long = {"traffic_scenarios": ["D(64,2000)"], "num_concurrency": [1], "max_time_per_iteration": 3600}
    task = task_with(optimization={"timeout_per_iteration": 10}, benchmark=long)
    *_, last = run(task, tmp_path)
    assert last.failure is not None and last.failure.cause is Cause.TRIAL_TIMEOUT


def test_a_limit_that_cuts_a_level_is_told_however_few_requests_it_cuts(tmp_path: Path) -> None:
    short = {"traffic_scenarios": ["D(64,20)"], "num_concurrency": [1], "max_time_per_iteration": 3600}
    task = task_with(
        optimization={"timeout_per_iteration": 30}, benchmark={**short, "max_requests_per_iteration": 10_000}
    )
    *_, last = run(task, tmp_path)
    assert last.failure is not None and last.failure.cause is Cause.TRIAL_TIMEOUT


def test_noise_is_of_the_seed_and_nothing_else(tmp_path: Path) -> None:
    scores = [run(task_with(), tmp_path, seed=seed)[-1].score.score for seed in (1, 1, 2)]
    assert scores[0] == scores[1] != scores[2]


def test_reports_within_levels_come_as_over_http(tmp_path: Path) -> None:
    task = task_with(benchmark={"num_concurrency": [4], "max_requests_per_iteration": 100})
    reports = run(task, tmp_path, glances=True)
    assert [report.part for report in reports] == [*GLANCES, 0.0]


def test_the_highest_load_is_searched_as_over_http(tmp_path: Path) -> None:
    task = task_with(
        benchmark={"find": "max_load", "num_concurrency": [1, 400], "max_requests_per_iteration": 400},
        slo={"tpot": {"threshold": 0.006}},
        optimization={"objective": "maximize_throughput"},
    )
    last = run(task, tmp_path)[-1]
    assert last.failure is None
    [found] = last.max_loads.values()
    assert 1 < found < 400
    assert predict(task, {}, seed=0).score.score is not None


@given(
    st.integers(1, 9),
    st.integers(1, 30),
    st.integers(0, 5),
    st.sampled_from([None, 3.0, 300.0]),
    st.sampled_from(["D(20,5)", "N(40,30)/(20,10)", "P(50,10)/4", "C(3)/(10,5)"]),
    st.sampled_from(["", "--max-total-tokens 400", "--stream-interval 4"]),
)
def test_nothing_is_lost_whatever_the_load(
    concurrency: int, requests: int, warmup: int, rate: float | None, scenario: str, flags: str
) -> None:
    load = replace(
        level(scenario, concurrency=concurrency, max_requests=requests, warmup_requests=warmup),
        request_rate=rate,
    )
    args = dict(zip(flags[2:].split()[::2], flags.split()[1::2], strict=True)) if flags else {}
    engine = VirtualEngine(task_with(engine={"args": args}))
    with engine.launch({}, gpu_ids=[], log_path=Path("/dev/null"), timeout_s=9) as server:
        assert isinstance(server, VirtualServer)
        result = put(server, load)
        assert server.ranks.idle and server.ranks.schedulers[0].kv.used == 0
    assert len(result.records) == requests
    good = [record for record in result.records if record.error is None]
    assert good or args.get("max-total-tokens")
    metrics = summarise(result.records, window_s=result.window_s, gpus=1, warmup=result.warmup)
    assert metrics.requests_ok == len(good)
    for record in good:
        assert record.ttft_s is not None and record.e2e_s is not None
        assert 0 < record.ttft_s <= record.e2e_s
        assert 0 <= record.sent_s <= result.window_s


def test_only_engines_with_sglangs_flags_have_virtual_time() -> None:
    with pytest.raises(UsageError, match="not those of vllm"):
        rig(task_with(), "vllm", virtual=True)
    assert rig(task_with(base_runtime="sglang"), virtual=True).engine.simulated


# --- studies -------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_whole_study_in_virtual_time_is_the_same_again_and_says_what_it_is(
    tmp_path: Path, ray_cluster: None
) -> None:
    task = task_with(
        model={"id_or_path": "llama-3.1-8b-instruct"},
        base_runtime="sglang",
        parameters={
            "tp-size": [1, 2, 4],
            "mem-fraction-static": [0.1, 0.8],
            "schedule-policy": ["lpm", "fcfs"],
        },
        optimization={"max_iterations": 8, "n_initial_random": 3, "confirm": 1, "early_stopping": False},
    )
    outcomes = [
        run_study(task, results=tmp_path, study=name, seed=3, virtual=True, max_concurrent=1)
        for name in ("a", "b")
    ]
    first, second = (outcome.results.trials for outcome in outcomes)
    assert list(first["config"]) == list(second["config"])
    assert list(first["loss"]) == list(second["loss"])
    assert (first["failure_cause"].dropna() == "out of memory").all()
    finished = first[first["failure_cause"].isna()]
    assert set(finished["kind"]) == {"baseline", "search", "confirm"}
    assert first["simulated"].all()
    assert (finished["engine_version"] == "simulator-0.1.0 in virtual time").all()
    again = finished[finished["kind"].isin(["baseline", "confirm"])]
    of_defaults = again["loss"][[not config for config in again["config"]]]
    assert of_defaults.nunique() == len(of_defaults) > 1  # a repeat has noise of its own
    read = ResultStore(tmp_path, "a").read()
    assert read.about["virtual"] is True and read.about["engine"] == "simulator"
    assert "SIMULATED in virtual time" in html(read, None)
    assert outcomes[0].best is not None and outcomes[0].best["config"]["tp-size"] == 4
    assert terminal(read, None) is not None
