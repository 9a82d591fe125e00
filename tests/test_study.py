"""A whole study through Ray Tune, on the simulator: what is run, recorded, refused and retried."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import processes
import pytest
import ray

from tuner import recorder, run_study
from tuner.errors import NotEnoughGpus, ResultsError, StudyError, UsageError
from tuner.progress import StudyProgress
from tuner.results import ResultStore
from tuner.task import Task, make_task

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SPACE = {
    "tp-size": [1, 2, 4],
    "schedule-policy": ["lpm", "fcfs"],
    "chunked-prefill-size": [512, 8192],
}


def small_task(**sections: Any) -> Task:
    """Two short load levels on a simulated 8B model."""
    return make_task(
        {
            "task_name": "small",
            "model": {"id_or_path": "llama-3.1-8b-instruct"},
            "parameters": SPACE,
            "benchmark": {
                "traffic_scenarios": ["D(64,16)"],
                "num_concurrency": [1, 2],
                "max_requests_per_iteration": 6,
            },
            **sections,
            "optimization": {
                "max_iterations": 6,
                "n_initial_random": 3,
                "confirm": 0,
                "early_stopping": False,
                **sections.get("optimization", {}),
            },
        }
    )


def test_a_study_measures_its_budget_and_knows_its_gain(tmp_path: Path) -> None:
    seen: list[StudyProgress] = []
    outcome = run_study(small_task(), results=tmp_path, study="s", seed=1, watch=seen.append)
    trials = outcome.results.trials
    assert outcome.exit_code == 0
    assert list(trials["trial"]) == list(range(6))
    assert list(trials["kind"]) == ["baseline"] + ["search"] * 5
    assert trials["failure_cause"].isna().all()
    assert len({json.dumps(config, sort_keys=True) for config in trials["config"]}) == 6
    assert (trials["levels_finished"] == 2).all()
    assert len(outcome.results.steps) == 12
    assert len(outcome.results.requests) == 72
    assert trials["simulated"].all()
    assert trials["engine_version"].str.contains("simulator").all()
    assert (trials["kv_tokens"] > 0).all()
    assert seen[-1].finished == 6 and seen[-1].best is not None
    places = {place for progress in seen for place in progress.places}
    ran = {(row["trial"], row["node"], tuple(row["gpu_ids"])) for row in trials.to_dict("records")}
    assert places and {(place.trial, place.node, place.gpu_ids) for place in places} <= ran
    log = outcome.log_path.read_text()
    assert all(f"Running: {place}" in log for place in places)
    assert "New best score" in log and "trial 0: engine's defaults" in log
    assert ResultStore(tmp_path, "s").read().about["seed"] == 1


def test_every_trial_holds_as_many_gpus_as_its_tp_size(tmp_path: Path) -> None:
    trials = run_study(small_task(), results=tmp_path, seed=2).results.trials
    for row in trials.to_dict("records"):
        assert len(set(row["gpu_ids"])) == row["gpus"] == row["config"].get("tp-size", 1)


def test_the_same_seed_proposes_the_same_trials_when_one_runs_at_a_time(tmp_path: Path) -> None:
    task = small_task(optimization={"strategy": "random"})  # its proposals do not hang on noisy scores
    runs = [
        run_study(task, results=tmp_path, study=name, seed=7, max_concurrent=1).results.trials["config"]
        for name in ("a", "b")
    ]
    assert list(runs[0]) == list(runs[1])


def test_failed_trials_are_results_and_the_study_goes_on(tmp_path: Path) -> None:
    task = small_task(
        parameters={"mem-fraction-static": [0.1, 0.8], "chunked-prefill-size": [512, 2048]},
        optimization={"strategy": "grid_search"},
    )
    outcome = run_study(task, results=tmp_path)
    trials = outcome.results.trials
    starved = [config.get("mem-fraction-static") == 0.1 for config in trials["config"]]
    assert sum(starved) == 2
    assert (trials["failure_cause"][starved] == "out of memory").all()
    assert (trials["failure_stage"][starved] == "start").all()
    assert (trials["loss"][starved] > 2000).all()
    assert trials["failure_evidence"][starved].str.contains("memory").all()
    assert trials["failure_cause"][[not s for s in starved]].isna().all()
    assert outcome.exit_code == 0


def test_a_study_that_meets_no_slo_says_so_with_its_own_exit_code(tmp_path: Path) -> None:
    task = small_task(
        slo={"ttft": {"threshold": 1e-6, "hard_fail": True}}, optimization={"max_iterations": 2}
    )
    outcome = run_study(task, results=tmp_path)
    assert outcome.exit_code == 3
    assert not outcome.results.trials["slo_met"].any()
    assert (outcome.results.trials["loss"] > 900).all()


def test_a_study_in_which_nothing_finishes_has_its_own_exit_code(tmp_path: Path) -> None:
    task = small_task(model={"id_or_path": "no/such-model"}, optimization={"max_iterations": 2})
    outcome = run_study(task, results=tmp_path)
    assert outcome.exit_code == 4
    assert (outcome.results.trials["failure_cause"] == "model not found").all()


def test_configurations_that_no_node_can_hold_are_refused_and_cost_no_trial(tmp_path: Path) -> None:
    task = small_task(parameters={"tp-size": [1, 2, 16]}, optimization={"strategy": "grid"})
    told: list[StudyProgress] = []
    trials = run_study(task, results=tmp_path, watch=told.append).results.trials
    refused = trials[trials["failure_cause"] == "no such GPUs"]
    assert list(refused["config"]) == [{"tp-size": 16}]
    assert "largest node has 8" in refused["failure_detail"].iloc[0]
    assert trials["failure_cause"].isna().sum() == 3
    assert (told[-1].finished, told[-1].failed) == (3, 0)
    assert any(row["failure_cause"] for seen in told if (row := seen.last)), "and yet it is told"


def test_a_task_that_no_node_can_hold_at_all_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughGpus, match="at least 16 GPU"):
        run_study(small_task(parameters={"tp-size": [16, 32]}), results=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_study_is_never_overwritten(tmp_path: Path) -> None:
    task = small_task(optimization={"max_iterations": 1})
    run_study(task, results=tmp_path, study="once")
    with pytest.raises(StudyError, match="exists already"):
        run_study(task, results=tmp_path, study="once")
    with pytest.raises(UsageError, match="no study can be called"):
        run_study(task, results=tmp_path, study="../escape")


@pytest.mark.parametrize("sampler", ["tpe", "hyperopt"])
def test_both_bayesian_samplers_run_through_tune(tmp_path: Path, sampler: str) -> None:
    task = small_task(optimization={"sampler": sampler, "max_iterations": 4})
    assert len(run_study(task, results=tmp_path).results.trials) == 4


def test_a_trial_whose_actor_is_killed_runs_again_and_counts_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(_kill_a_trial_actor)
        task = small_task(optimization={"max_iterations": 4})
        trials = run_study(task, results=tmp_path).results.trials
    assert killed.result() > 0
    assert list(trials["trial"]) == list(range(4))
    assert trials["failure_cause"].isna().all()


def _kill_a_trial_actor() -> int:
    """SIGKILLs the process of one busy trial actor; returns its pid."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for pid, line in processes.below(os.getpid()).items():  # of this cluster
            if line.startswith("ray::") and "EngineTrial.train" in line:
                os.kill(pid, signal.SIGKILL)
                return pid
        time.sleep(0.1)
    return 0


def test_no_engine_outlives_its_study(tmp_path: Path) -> None:
    marker = f"served-{uuid4().hex}"
    task = small_task(optimization={"max_iterations": 3})
    named = task.model_copy(update={"benchmark": task.benchmark.model_copy(update={"model_name": marker})})
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(processes.appeared, marker)
        run_study(named, results=tmp_path)
    assert seen.result()
    assert not processes.with_marker(marker)
    assert ray.is_initialized()  # a cluster that was there before is left alone


# With seed 13 a random search draws what loses, one request at a time, after six that do not.


def test_an_engine_has_the_threads_that_it_would_have_without_ray(tmp_path: Path) -> None:
    """Ray sets OMP_NUM_THREADS in a trial's process, where what is exported runs without."""
    marker = f"served-{uuid4().hex}"
    task = small_task(optimization={"max_iterations": 1})
    named = task.model_copy(update={"benchmark": task.benchmark.model_copy(update={"model_name": marker})})
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(_environments, marker)
        run_study(named, results=tmp_path)
    found = seen.result()
    assert found
    if "OMP_NUM_THREADS" not in os.environ:
        assert not any(b"OMP_NUM_THREADS" in environment for environment in found)


def _environments(marker: str) -> list[bytes]:
    """Those of the engine and its watchdog."""
    assert processes.appeared(marker)
    deadline, found = time.monotonic() + 20, list[bytes]()
    while len(found) < 2 and time.monotonic() < deadline:  # the engine is started a moment after
        found = []
        for pid in processes.with_marker(marker):
            with suppress(OSError):
                found.append(Path(f"/proc/{pid}/environ").read_bytes())
    return found


def test_trials_that_lose_are_stopped_and_never_the_best(tmp_path: Path) -> None:
    task = small_task(
        parameters={"max-running-requests": [1, 64, 128], "chunked-prefill-size": list(range(512, 2048, 64))},
        optimization={"strategy": "random", "max_iterations": 9, "seed": 13, "early_stopping": True},
        benchmark={
            "traffic_scenarios": ["D(64,16)"],
            "num_concurrency": [6, 8],
            "max_requests_per_iteration": 16,
        },
    )
    outcome = run_study(task, results=tmp_path, max_concurrent=1)
    trials = outcome.results.trials
    stopped = trials[trials["stopped_early"]]
    assert any(config["max-running-requests"] == 1 for config in stopped["config"])
    assert (stopped["levels_finished"] == 1).all()
    assert outcome.best is not None and outcome.best["config"].get("max-running-requests") != 1
    assert outcome.best["trial"] not in set(stopped["trial"])
    assert "Stopped (losing after 1 of 2 load levels)" in outcome.log_path.read_text()


def test_a_trial_that_loses_is_stopped_in_the_middle_of_a_load_level(tmp_path: Path) -> None:
    task = small_task(
        parameters={"max-running-requests": [1, 64, 128], "chunked-prefill-size": list(range(512, 2048, 64))},
        optimization={"strategy": "random", "max_iterations": 9, "seed": 13, "early_stopping": True},
        benchmark={
            "traffic_scenarios": ["D(64,16)"],
            "num_concurrency": [16],
            "max_requests_per_iteration": 80,
        },
    )
    trials = run_study(task, results=tmp_path, max_concurrent=1).results.trials
    stopped = trials[trials["stopped_early"]]
    assert any(config["max-running-requests"] == 1 for config in stopped["config"])
    assert (stopped["levels_finished"] == 0).all()


def test_a_search_that_has_nothing_more_to_gain_ends_and_says_why(tmp_path: Path) -> None:
    task = small_task(optimization={"max_iterations": 12, "convergence": {"patience": 2}})
    outcome = run_study(task, results=tmp_path, study="s", max_concurrent=1)
    ended = outcome.results.about["ended_early"]
    assert ended.startswith(("no better configuration in 2 trials", "the next trial is expected to gain"))
    assert len(outcome.results.trials) < 12
    assert f"the search has ended early: {ended}" in outcome.log_path.read_text()


def test_a_study_keeps_to_its_time(tmp_path: Path) -> None:
    task = small_task(optimization={"max_iterations": 12, "max_time": 1e-3})
    outcome = run_study(task, results=tmp_path, max_concurrent=1)
    assert len(outcome.results.trials) == 1
    assert "optimization.max_time" in outcome.results.about["ended_early"]


def test_results_that_cannot_be_written_end_the_study_with_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*anything: Any) -> None:
        raise ResultsError("cannot write trial 0: No space left on device")

    monkeypatch.setattr(ResultStore, "write_trial", full)
    monkeypatch.setattr(recorder, "PATIENCE_S", 0.0)
    with pytest.raises(ResultsError, match="No space left"):
        run_study(small_task(optimization={"max_iterations": 3}), results=tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for nothing but some rows."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_study_pauses_while_the_disk_is_full_and_loses_nothing(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ballast, troubles = small_disk / "ballast", []

    def watch(progress: StudyProgress) -> None:
        if progress.finished == 2 and not troubles and not ballast.exists():
            with ballast.open("wb") as full, suppress(OSError):
                while True:
                    os.write(full.fileno(), bytes(4096))
        if progress.trouble and progress.trouble not in troubles:
            troubles.append(progress.trouble)
            ballast.unlink()

    monkeypatch.setattr(recorder, "TRIED_AGAIN_S", 0.2)
    outcome = run_study(small_task(), results=small_disk, study="s", max_concurrent=2, watch=watch)
    assert len(troubles) == 1
    assert "paused: cannot write trial" in troubles[0] and "No space left on device" in troubles[0]
    assert outcome.results.skipped == ()
    assert list(outcome.results.trials["trial"]) == list(range(6))
    assert len(outcome.results.requests) == 72
    assert "Paused" in outcome.log_path.read_text()
    assert not list((small_disk / "s").rglob("*.part"))
