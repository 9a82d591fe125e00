"""`tuner verify`: the exported command is started, loaded, and held to what its study promised."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import processes
import pytest
import studies

from tuner.analysis.confirmation import one_more, promised
from tuner.bench import Kept
from tuner.cli import main
from tuner.engines import make_engine
from tuner.errors import StudyError, UsageError
from tuner.objective import OBJECTIVES, Objective
from tuner.results import ResultStore
from tuner.results import studies as kept_studies
from tuner.task import make_task
from tuner.verify import Compared, Promises, allowance, candidate


def told(*words: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def data(marker: str = "m", **sections: Any) -> dict[str, Any]:
    return {
        "task_name": "small",
        "model": {"id_or_path": "llama-3.2-1b-instruct"},
        "parameters": {"chunked-prefill-size": [512, 2048]},
        "engine": {"args": {"gpu": "h200", "schedule-policy": "lpm"}},
        "benchmark": {
            "model_name": marker,
            "traffic_scenarios": ["D(32,8)"],
            "num_concurrency": [1, 2],
            "max_requests_per_iteration": 6,
        },
        **sections,
    }


def promising(
    root: Path, objective: float, *, task: dict[str, Any] | None = None, **columns: Any
) -> ResultStore:
    """A study of one trial that promises a mean latency of so many seconds."""
    task = task or data()
    config = {"chunked-prefill-size": 512}
    engine = make_engine(make_task(task))
    store = ResultStore(root, "small")
    store.create(
        {"schema_version": 1, "task": task, "engine": engine.name, "simulated": engine.simulated, "seed": 3}
    )
    row = {
        **{"study": "small", "trial": 1, "kind": "search", "config": json.dumps(config)},
        **{"command": json.dumps(engine.launch_command(config)), "gpus": 1, "engine": engine.name},
        **{"objective_name": "minimize_latency", "objective_unit": "s", "objective": objective},
        **{"score": objective, "loss": math.log(objective), "slo_met": True, "started_at": datetime.now(UTC)},
        **columns,
    }
    store.write_trial(row, [], [])
    return store


def test_what_is_as_good_as_promised_is_delivered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    promise = {"latency": {"p90": {"threshold": 60.0}}}
    promising(tmp_path, 60.0, task=data(slo=promise), slo_worst="latency p90", slo_worst_violation=-0.5)
    assert told("verify", "--results", str(tmp_path), "--json") == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert (found["study"], found["trial"], found["delivered"]) == ("small", 1, True)
    [objective] = found["objectives"]
    assert objective["promised"] == 60.0 and 0 < objective["measured"] < 60 and objective["worse_by"] < 0
    assert found["slo"]["met"] is True and found["slo"]["delivered"] is True
    assert found["simulated"] is True and "SIMULATED" in shown.err
    assert [level["concurrency"] for level in found["levels"]] == [1, 2]
    assert told("export", "--results", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in found["command"])


def test_it_is_kept_as_a_bench_that_no_command_takes_for_a_study(tmp_path: Path) -> None:
    promising(tmp_path, 60.0)
    assert told("verify", "small", "--results", str(tmp_path)) == 0
    name, study = kept_studies(tmp_path)
    assert name.startswith("verify-") and study == "small"
    found = ResultStore(tmp_path, name).read()
    assert (found.about["kind"], found.about["verifies"]) == ("bench", "small")
    [trial] = found.trials.to_dict("records")
    assert trial["kind"] == "bench" and trial["config"] == {"chunked-prefill-size": 512}
    assert trial["effective_args"]["gpu"] == "h200" and trial["effective_args"]["schedule-policy"] == "lpm"
    assert list(found.steps["requests_ok"]) == [6, 6]
    assert "SIMULATION" in Path(trial["log_path"]).read_text()
    assert told("verify", "--results", str(tmp_path)) == 0  # the study again, not what verified it
    assert told("report", name, "--results", str(tmp_path)) == 0


def test_what_is_worse_than_promised_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    promising(tmp_path, 1e-6)
    assert told("verify", "--results", str(tmp_path)) == 3
    said = capsys.readouterr().out
    assert "does NOT deliver" in said and "worse" in said and "SIMULATED" in said


def test_a_broken_slo_is_not_delivered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    promise = {"ttft": {"p95": {"threshold": 1e-6}}}
    promising(tmp_path, 60.0, task=data(slo=promise), slo_worst="ttft p95", slo_worst_violation=-0.1)
    assert told("verify", "--results", str(tmp_path)) == 3
    assert "broken: ttft p95 by" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["--model-path", "llama-3.2-1b-instruct", "--host", "h", "--port", "30000", "--no-such-flag", "1"],
        ["--model-path", "no/such-model", "--host", "h", "--port", "30000"],
        ["--model-path", "llama-3.2-1b-instruct"],
    ],
    ids=["a flag", "a model", "no address"],
)
def test_what_does_not_start_ends_with_exit_code_4(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["python", "-m", "sglang.launch_server", *command]
    promising(tmp_path, 60.0, command=json.dumps(argv))
    assert told("verify", "--results", str(tmp_path), "--json") == 4
    found = json.loads(capsys.readouterr().out)
    assert found["failure_cause"] and found["delivered"] is False and found["objectives"] == []
    assert found["command"] == argv


@pytest.mark.parametrize("more", [["--host", "0.0.0.0"], ["--host=::"], ["--ho", "0.0.0.0"], ["--por=1"]])
def test_a_command_that_would_listen_elsewhere_is_not_started(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = make_engine(make_task(data()))
    promising(tmp_path, 60.0, command=json.dumps([*engine.launch_command({}), *more]))
    assert told("verify", "--results", str(tmp_path), "--json") == 4
    found = json.loads(capsys.readouterr().out)
    assert "once, so that it can be another" in found["failure_detail"]


def test_what_cannot_be_verified_starts_nothing(tmp_path: Path) -> None:
    studies.make(requests=2).write(tmp_path)  # of SGLang, which is not here
    assert told("verify", "--results", str(tmp_path)) == 2
    assert told("verify", "--results", str(tmp_path), "--trial", "999") == 2
    assert told("verify", "nothing", "--results", str(tmp_path)) == 2
    assert kept_studies(tmp_path) == ["llama-tune"]


def test_an_engine_that_starts_no_exported_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made = studies.make(requests=2)
    monkeypatch.setattr("tuner.verify.make_engine", lambda *_: type("Plugin", (), {"name": "mine"})())
    with pytest.raises(UsageError, match="the engine mine starts no exported command"):
        candidate(made.results())


def test_a_trial_that_was_stopped_promises_nothing() -> None:
    with pytest.raises(StudyError, match="trial 3 promises nothing"):
        candidate(studies.make(requests=2, stopped=[3], fails=studies.never_fails).results(), 3)


def test_a_bench_promises_nothing() -> None:
    made = studies.make(requests=2)
    made.about["kind"] = "bench"
    with pytest.raises(StudyError, match="nothing to launch"):
        candidate(made.results())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_no_process_outlives_it(number: signal.Signals, tmp_path: Path) -> None:
    marker = f"served-{uuid4().hex}"
    load = {**data(marker)["benchmark"], "max_requests_per_iteration": 100_000, "max_time_per_iteration": 600}
    promising(tmp_path, 60.0, task=data(marker, benchmark=load))
    command = [sys.executable, "-m", "tuner.cli", "verify", "--results", str(tmp_path)]
    verifying = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert processes.appeared(marker)
    verifying.send_signal(number)
    said = verifying.communicate(timeout=60)[0].decode()
    assert processes.gone(marker), said
    assert verifying.returncode == {signal.SIGINT: 130}.get(number, -number), said
    assert kept_studies(tmp_path) == ["small"]


# --- what may be chance --------------------------------------------------------------------------------

LATENCY, RATE = OBJECTIVES["minimize_latency"], OBJECTIVES["maximize_throughput"]


@pytest.mark.parametrize(
    ("objective", "promised", "measured", "delivered"),
    [
        (LATENCY, 1.0, 0.5, True),
        (LATENCY, 1.0, 1.05, True),
        (LATENCY, 1.0, 1.2, False),
        (RATE, 100.0, 200.0, True),
        (RATE, 100.0, 95.0, True),
        (RATE, 100.0, 80.0, False),
        (OBJECTIVES["maximize_goodput"], 1.0, 0.0, False),
        (OBJECTIVES["maximize_goodput"], 0.0, 0.0, True),
    ],
)
def test_an_objective_is_delivered_within_what_may_be_chance(
    objective: Objective, promised: float, measured: float, delivered: bool
) -> None:
    found = Compared(objective, promised, measured, allowed=0.1)
    assert found.delivered is delivered
    assert promised == 0 or (found.worse_by > 0) == objective.better(promised, measured)


@pytest.mark.parametrize(
    ("promised", "measured", "delivered"),
    [(0.0, -0.2, True), (0.0, 0.05, True), (0.0, 0.2, False), (0.5, 0.6, True), (0.5, 0.7, False)],
)
def test_slos_are_delivered_within_what_may_be_chance(
    promised: float, measured: float, delivered: bool
) -> None:
    assert Promises(promised, measured, "ttft p95", allowed=0.1).delivered is delivered


def test_repeats_say_by_how_much_one_more_run_may_differ() -> None:
    """Of studies whose runs drift by 3 %, one more run lies within the interval about as often as it says."""
    inside = 0
    for seed in range(60):
        grid = studies.grid(studies.PARAMETERS, 3, seed)
        made = studies.make(
            grid,
            repeats=[grid[0], {}, grid[1]] * 3,
            seed=seed,
            drift=0.03,
            noise=0.0,
            requests=4,
            fails=studies.never_fails,
        )
        runs = [
            math.log(row["objective"])
            for row in made.trials
            if row["kind"] == "confirm" and json.loads(row["config"]) == grid[0]
        ]
        known, last, results = runs[:-1], runs[-1], made.results()
        others = results.trials["trial"] != _last_of(made, grid[0])
        without = replace(results, trials=results.trials[others])
        margin = one_more(without, grid[0], 0.95)
        assert margin is not None
        inside += abs(last - float(np.mean(known))) <= margin
    assert 51 <= inside <= 60  # 57 are expected


def test_what_a_repeated_trial_promises_is_the_mean_of_its_repeats() -> None:
    first, second = studies.grid(studies.PARAMETERS, 2)
    results = studies.make([first, second], repeats=[first, {}] * 2, drift=0.03).results()
    own = results.trials.to_dict("records")

    def mean(*numbers: int) -> float:
        return math.exp(float(np.mean([math.log(own[number]["objective"]) for number in numbers])))

    assert promised(results, own[1])["objective"] == pytest.approx(mean(3, 5))
    assert promised(results, own[0])["objective"] == pytest.approx(mean(0, 4, 6))  # not picked for its result
    assert promised(results, own[2]) == own[2]


def _last_of(made: studies.Made, config: dict[str, Any]) -> int:
    return max(row["trial"] for row in made.trials if json.loads(row["config"]) == config)


def test_without_repeats_it_is_what_starts_differ_by_and_the_noise_of_both() -> None:
    made = studies.make(requests=40)
    results = made.results()
    assert one_more(results, {}, 0.95) is None
    trial = results.trials.to_dict("records")[0]
    steady = allowance(results, trial, Kept({}, (), "", {}))
    results.steps["latency_ci95_s"] = 0.1 * results.steps["latency_mean_s"]
    noisy = allowance(results, trial, Kept({}, (), "", {}))
    assert 0.02 <= steady < noisy < 0.1
