"""One configuration from launch to score, in the foreground: the same path that a Tune trial takes."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import processes
import pytest
from test_security import told

from tuner.engines import make_engine
from tuner.evaluate import Report, evaluate
from tuner.failures import Cause, Stage
from tuner.load import LOAD_GENERATORS
from tuner.load.base import Glance, LoadResult, Target
from tuner.measure import Probe
from tuner.metrics import RequestError, RequestRecord
from tuner.task import Task, make_task
from tuner.workload import LoadLevel


def task_with(**sections: Any) -> Task:
    return make_task(
        {
            "model": {"id_or_path": "llama-3.1-8b-instruct"},
            "benchmark": {
                "model_name": f"served-{uuid4().hex}",
                "traffic_scenarios": ["D(64,16)"],
                "num_concurrency": [1, 2],
                "max_requests_per_iteration": 6,
                **sections.pop("benchmark", {}),
            },
            **sections,
        }
    )


def run(
    task: Task,
    folder: Path,
    config: dict[str, Any] | None = None,
    load: Any = None,
    *,
    glances: bool = False,
) -> list[Report]:
    return list(
        evaluate(
            task,
            config or {},
            engine=make_engine(task),
            load=load or LOAD_GENERATORS["native"],
            seed=0,
            gpu_ids=[],
            log_path=folder / "engine.log",
            glances=glances,
        )
    )


class ScriptedLoad:
    """Answers every level with `script(level)`; the client that a server's misbehaviour is tried with."""

    name = "scripted"

    def __init__(
        self, script: Callable[[LoadLevel], list[RequestRecord]], glances: tuple[Glance, ...] = ()
    ) -> None:
        self.script, self.glances = script, glances

    def run(
        self,
        target: Target,
        level: LoadLevel,
        *,
        healthy: Callable[[], bool],
        timeout_s: float,
        stall_s: float = math.inf,
        seen: Callable[[Glance], None] | None = None,
    ) -> LoadResult:
        for glance in self.glances if seen is not None else ():
            seen(glance)
        return LoadResult(tuple(self.script(level)), window_s=1.0)


GOOD = RequestRecord(0.0, 0.1, 0.5, 64, 16)
BAD = RequestRecord(0.0, None, None, 0, 0, RequestError.HTTP, 500)
CUT = RequestRecord(0.0, None, None, 0, 0, RequestError.CONNECTION)
LATE = RequestRecord(0.0, None, None, 0, 0, RequestError.TIMEOUT)


def test_a_report_for_every_level_and_the_engine_gone_at_the_end(tmp_path: Path) -> None:
    task = task_with()
    first, last = run(task, tmp_path, {"tp-size": 2})
    assert (first.finished, first.done) == (1, False)
    assert (last.finished, last.done, last.planned) == (2, True, 2)
    assert last.failure is None
    assert last.step is not None and last.step.metrics.requests_ok == 6
    assert last.step.metrics.gpus == 2
    assert last.score.objective and last.score.loss < 100
    assert last.info.kv_tokens and last.start_s
    assert not processes.with_marker(task.served_model_name)


def test_closing_it_early_ends_the_engine(tmp_path: Path) -> None:
    task = task_with()
    reports = evaluate(
        task,
        {},
        engine=make_engine(task),
        load=LOAD_GENERATORS["native"],
        seed=0,
        gpu_ids=[],
        log_path=tmp_path / "engine.log",
    )
    next(reports)
    assert processes.with_marker(task.served_model_name)
    reports.close()  # type: ignore[attr-defined]
    assert not processes.with_marker(task.served_model_name)


def test_a_refused_flag_is_a_failure_of_the_check(tmp_path: Path) -> None:
    (report,) = run(task_with(), tmp_path, {"schedule-policy": "nosuch"})
    assert report.done and report.failure is not None
    assert report.failure.stage is Stage.CHECK
    assert report.score.loss == pytest.approx(2300)
    assert not (tmp_path / "engine.log").exists()


def test_a_failed_start_costs_less_than_a_failed_check(tmp_path: Path) -> None:
    (report,) = run(task_with(), tmp_path, {"mem-fraction-static": 0.05})
    assert report.failure is not None and report.failure.cause is Cause.OUT_OF_MEMORY
    assert report.score.loss == pytest.approx(2200)


def test_finished_levels_of_a_failed_trial_are_kept(tmp_path: Path) -> None:
    load = ScriptedLoad(lambda level: [GOOD] * 4 if level.concurrency == 1 else [GOOD, BAD])
    first, last = run(task_with(), tmp_path, load=load)
    assert first.step is not None and first.failure is None
    assert last.failure is not None and last.failure.cause is Cause.REQUEST_ERRORS
    assert "1 of 2 requests failed (1 http status 500)" in last.failure.detail
    assert (last.finished, last.failure.progress) == (1, 0.5)
    assert last.score.objective == pytest.approx(0.5)
    assert last.score.loss == pytest.approx(2050)


def test_requests_that_never_end_are_a_hang(tmp_path: Path) -> None:
    reports = run(task_with(), tmp_path, load=ScriptedLoad(lambda level: [LATE, LATE]))
    assert reports[-1].failure is not None and reports[-1].failure.cause is Cause.HANG


def test_a_few_failed_requests_are_tolerated_and_counted(tmp_path: Path) -> None:
    load = ScriptedLoad(lambda level: [GOOD] * 19 + [BAD])
    task = task_with(benchmark={"max_error_rate": 0.05})
    last = run(task, tmp_path, load=load)[-1]
    assert last.failure is None and last.step is not None
    assert last.step.metrics.errors == {"http status": 1}


def test_a_prompt_that_is_too_long_fails_with_the_servers_own_words(tmp_path: Path) -> None:
    last = run(task_with(benchmark={"traffic_scenarios": ["D(200000,10)"]}), tmp_path)[-1]
    assert last.failure is not None and last.failure.cause is Cause.REQUEST_ERRORS
    assert "http status 400); the server says: {" in last.failure.detail
    assert "context" in last.failure.detail or "longer" in last.failure.detail


def test_answers_of_one_token_have_no_time_per_token(tmp_path: Path) -> None:
    single = RequestRecord(0.0, 0.1, 0.1, 64, 1)  # as of a model that stops at once
    task = task_with(optimization={"objective": ["minimize_ttft", "minimize_tpot"]})
    last = run(task, tmp_path, load=ScriptedLoad(lambda level: [single] * 9))[-1]
    assert last.failure is not None and last.failure.cause is Cause.REQUEST_ERRORS
    assert "no answer has more than one token" in last.failure.detail
    assert len(last.others) == 1 and math.isfinite(last.others[0].loss)


def test_an_engine_that_dies_under_load_is_told_by_its_exit(tmp_path: Path) -> None:
    task = task_with()

    def die(level: LoadLevel) -> list[RequestRecord]:
        for pid, line in processes.with_marker(task.served_model_name).items():
            if "watchdog" not in line:
                os.kill(pid, signal.SIGKILL)
        return [CUT]

    last = run(task, tmp_path, load=ScriptedLoad(die))[-1]
    assert last.failure is not None
    assert (last.failure.stage, last.failure.cause) == (Stage.LOAD, Cause.CRASH)
    assert last.failure.exit_code == -signal.SIGKILL


def test_a_trial_ends_at_its_own_timeout(tmp_path: Path) -> None:
    task = task_with(
        benchmark={"traffic_scenarios": ["D(64,2000)"], "max_time_per_iteration": 60},
        optimization={"timeout_per_iteration": 2.0},
    )
    last = run(task, tmp_path)[-1]
    assert last.failure is not None and last.failure.cause is Cause.TRIAL_TIMEOUT
    assert "timeout_per_iteration (2 s)" in last.failure.detail
    assert not processes.with_marker(task.served_model_name)


def test_an_engine_that_stops_answering_is_a_hang_long_before_the_trials_limit(tmp_path: Path) -> None:
    task = task_with(
        benchmark={"traffic_scenarios": ["D(64,4000)"], "max_time_per_iteration": 60},
        engine={"hang_timeout": 1.0},
    )

    class Freezing(ScriptedLoad):
        """The native client, on an engine that is stopped (SIGSTOP) a moment after the load began."""

        def run(self, target: Target, level: LoadLevel, **options: Any) -> LoadResult:
            threading.Timer(1.0, _freeze, [task.served_model_name]).start()
            return LOAD_GENERATORS["native"].run(target, level, **options)

    last = run(task, tmp_path, load=Freezing(lambda level: []))[-1]
    assert last.failure is not None
    assert (last.failure.stage, last.failure.cause) == (Stage.LOAD, Cause.HANG)
    assert "served nothing for 1 s" in last.failure.detail
    assert not processes.with_marker(task.served_model_name)


def _freeze(marker: str) -> None:
    for pid, line in processes.with_marker(marker).items():
        if "watchdog" not in line:
            os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("keep", [False, True])
def test_the_cache_is_flushed_between_levels_unless_it_is_to_stay_warm(tmp_path: Path, keep: bool) -> None:
    task = task_with(benchmark={"keep_cache": keep})
    flushed: list[str] = []
    engine = make_engine(task)
    with engine.launch({}, gpu_ids=[], log_path=tmp_path / "log", timeout_s=30) as server:
        server.flush_cache = lambda: flushed.append("yes")  # type: ignore[method-assign]
        probe = Probe(task, server, ScriptedLoad(lambda _: [GOOD]), gpus=1)
        for level in task.levels(0):
            probe.measure(level)
    assert len(flushed) == (0 if keep else 2)


def test_a_shared_prefix_is_found_in_the_engines_cache(tmp_path: Path) -> None:
    hits = {}
    for ratio in (0.0, 0.8):
        load = {"traffic_scenarios": ["D(500,8)"], "prefix_ratio": ratio, "max_requests_per_iteration": 40}
        last = run(task_with(benchmark=load), tmp_path)[-1]
        assert last.step is not None
        hits[ratio] = last.step.engine.cache_hit_rate
    assert hits == pytest.approx({0.0: 0.0, 0.8: 0.8}, abs=0.05)


# --- glances -------------------------------------------------------------------------------------------


def test_glances_are_reports_that_tell_of_part_of_a_level(tmp_path: Path) -> None:
    fast = RequestRecord(0.0, 0.1, 0.25, 0, 16)
    glances = (Glance(0.25, (fast,) * 5, 1.0), Glance(0.5, (fast,) * 20, 2.0))  # the first tells too little
    load = ScriptedLoad(lambda level: [GOOD], glances)
    reports = run(task_with(), tmp_path, load=load, glances=True)
    assert [report.share for report in reports] == [0.25, 0.5, 0.75, 1.0]
    assert [report.finished for report in reports] == [0, 1, 1, 2]
    assert [report.step is None for report in reports] == [True, False, True, False]
    objectives = [report.score.objective for report in reports]
    assert objectives == pytest.approx([0.25, 0.5, 0.375, 0.5])
    losses = [report.score.loss for report in reports]
    assert losses == pytest.approx([math.log(value) for value in (0.25, 0.5, 0.375, 0.5)])
    assert [report.done for report in reports] == [False, False, False, True]
    assert len(run(task_with(), tmp_path, load=load)) == 2  # nobody asked for them


def test_a_glance_keeps_the_penalty_of_the_levels_before(tmp_path: Path) -> None:
    task = task_with(
        slo={"latency": {"threshold": 0.4}}, optimization={"objective": "maximize_output_throughput"}
    )
    load = ScriptedLoad(lambda level: [GOOD], (Glance(0.5, (GOOD,) * 20, 20.0),))
    first, level, second, _ = run(task, tmp_path, load=load, glances=True)
    assert first.score.loss == pytest.approx(-math.log(16.0))
    assert level.score.loss > -math.log(16.0)
    assert second.score.loss == pytest.approx(level.score.loss)


def test_a_trial_that_is_left_in_the_middle_of_a_level_ends_at_once(tmp_path: Path) -> None:
    task = task_with(
        benchmark={"max_requests_per_iteration": 200, "max_time_per_iteration": 600, "num_concurrency": [2]}
    )
    reports = evaluate(
        task,
        {},
        engine=make_engine(task),
        load=LOAD_GENERATORS["native"],
        seed=0,
        gpu_ids=[],
        log_path=tmp_path / "engine.log",
        glances=True,
    )
    first = next(reports)
    assert first.step is None and first.share == 0.25 and first.score.objective
    assert processes.with_marker(task.served_model_name)
    reports.close()  # type: ignore[attr-defined]
    assert not processes.with_marker(task.served_model_name)


def test_a_clock_that_jumps_breaks_no_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = itertools.cycle([0.0, 86_400.0, -86_400.0, 1e8])
    monkeypatch.setattr(time, "time", lambda: 1e9 + next(jumps))
    last = run(task_with(optimization={"timeout_per_iteration": 60}), tmp_path)[-1]
    assert last.failure is None and last.finished == 2
    assert last.step is not None and 0 < last.step.metrics.duration_s < 60
    assert last.start_s is not None and 0 < last.start_s < 60


# --- the command ---------------------------------------------------------------------------------------


@pytest.fixture
def constrained(tmp_path: Path) -> str:
    path = tmp_path / "task.json"
    task = {
        "base_runtime": "simulator",
        "parameters": {"tp-size": [1, 2], "schedule-policy": ["lpm", "fcfs"]},
        "constraints": [{"when": {"tp-size": 2}, "require": {"schedule-policy": "lpm"}}],
        "benchmark": {"traffic_scenarios": ["D(20,5)"], "num_concurrency": [1]},
    }
    path.write_text(json.dumps(task))
    return str(path)


def test_a_flag_is_set_once(constrained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told("trial", constrained, "--virtual", "--set", "tp-size=1", "--set", "--tp-size=2") == 2
    said = capsys.readouterr()
    assert said.err == "error: --set tp-size: is given twice\n" and not said.out


@pytest.mark.parametrize(("policy", "warned"), [("lpm", False), ("fcfs", True)])
def test_a_configuration_that_the_task_forbids_is_run_with_a_warning(
    constrained: str, capsys: pytest.CaptureFixture[str], policy: str, warned: bool
) -> None:
    words = ("--virtual", "--json", "--set", "tp-size=2", "--set", f"schedule-policy={policy}")
    assert told("trial", constrained, *words) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["failure_cause"] is None
    assert ("constraints forbid this configuration" in said.err) is warned
