"""A study whose driver is killed goes on where it was left: nothing is lost, nothing is measured twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import processes
import pytest
import ray

from tuner import run_study
from tuner.cli import main
from tuner.cluster import nodes_of
from tuner.results import ResultStore
from tuner.space import config_key
from tuner.task import make_task

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

KILLS = 20
PROGRAM = Path(__file__).with_name("killed_drivers.py")
SEED = 20261124


def document(marker: str, **optimization: Any) -> dict[str, Any]:
    return {
        "task_name": "killed",
        "model": {"id_or_path": "llama-3.1-8b-instruct"},
        "parameters": {
            "tp-size": [1, 2, 4],
            "schedule-policy": ["lpm", "fcfs"],
            "chunked-prefill-size": [512, 1024, 2048, 4096, 8192],
            "mem-fraction-static": [0.1, 0.7, 0.8],
        },
        "optimization": {
            "max_iterations": 44,
            "confirm": 2,
            "convergence": {"least_gain": None},
            **optimization,
        },
        "benchmark": {
            "model_name": marker,
            "traffic_scenarios": ["D(64,16)"],
            "num_concurrency": [1, 2],
            "max_requests_per_iteration": 10,
        },
    }


def run_killed(task: Path, results: Path, kills: int) -> list[dict[str, Any]]:
    """The study of `task` with as many kills of its driver; what was on disk after each."""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, str(PROGRAM), str(task), str(results), str(kills), str(SEED)]
    ended = subprocess.run(
        command,
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


@pytest.mark.timeout(1200)
def test_a_driver_that_is_killed_at_any_moment_loses_and_repeats_nothing(tmp_path: Path) -> None:
    marker = f"served-{uuid4().hex}"
    task = tmp_path / "task.json"
    task.write_text(json.dumps(document(marker)))
    moments = run_killed(task, tmp_path, KILLS)
    assert len(moments) == KILLS
    assert all(moment["killed"] for moment in moments), "the study must outlast the kills"
    before: dict[str, str] = {}
    for moment in moments:
        assert before.items() <= moment["rows"].items(), "a row that was written stays as it is"
        before = moment["rows"]
    results = ResultStore(tmp_path, "s").read()
    assert results.skipped == ()
    trials = results.trials
    assert Counter(trials["kind"]) == {"baseline": 1, "search": 43, "confirm": 6}
    searched = [config_key(config) for config in trials["config"][trials["kind"] == "search"]]
    assert len(set(searched)) == 43
    repeated = Counter(config_key(config) for config in trials["config"][trials["kind"] == "confirm"])
    assert repeated[config_key({})] == 2 and len(repeated) >= 2
    assert len(set(trials["trial"])) == len(trials)
    assert processes.gone(marker)
    hidden = [path for path in Path(tmp_path, "s").rglob(".*") if path.name != ".lock"]
    assert not hidden, "what was half written is gone"


def test_a_study_that_is_complete_stays_as_it_is_and_more_trials_can_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "task.json"
    small = document("served", max_iterations=3, confirm=0)
    task.write_text(json.dumps(small))
    results = ["--results", str(tmp_path)]

    def tuner(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *results])
        return int(ended.value.code or 0)

    assert tuner("run", str(task), "--study", "s", "--seed", "5") == 0
    files = {path: path.read_bytes() for path in (tmp_path / "s").glob("*/*.parquet")}
    assert len(files) == 9
    assert tuner("run", str(task), "--resume") == 0, "the study is found by its task's name"
    assert {path: path.read_bytes() for path in (tmp_path / "s").glob("*/*.parquet")} == files

    task.write_text(json.dumps(document("served", max_iterations=5, confirm=0)))
    assert tuner("run", str(task), "--resume") == 2
    assert "optimization.max_iterations: 3 -> 5" in capsys.readouterr().err
    assert tuner("resume", "s", "--task", str(task), "--adopt") == 0
    found = ResultStore(tmp_path, "s").read()
    assert list(found.trials["trial"]) == list(range(5))
    assert {path: path.read_bytes() for path in files} == files
    assert found.about["task"]["optimization"]["max_iterations"] == 5
    assert len(found.about["resumed_at"]) == 2

    assert tuner("resume", "no-such-study") == 2
    assert "no study 'no-such-study'" in capsys.readouterr().err
    assert tuner("run", str(task), "--adopt") == 2


def test_what_no_node_had_the_gpus_for_is_tried_when_one_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice on a node of four GPUs, then on one of eight."""
    task = make_task(
        document("lacked", strategy="grid", max_iterations=4, confirm=0)
        | {"parameters": {"tp-size": [1, 8], "schedule-policy": ["lpm", "fcfs"]}}
    )
    with monkeypatch.context() as patch:
        four = [replace(node, gpus=4.0) for node in nodes_of("")]
        patch.setattr("tuner.study.nodes_of", lambda kind: four)
        for _ in range(2):
            trials = run_study(task, results=tmp_path, study="s", resume=True, virtual=True).results.trials
            refused = trials[trials["failure_cause"] == "no such GPUs"]
            assert [config["tp-size"] for config in refused["config"]] == [8, 8]
            assert list(trials["trial"]) == list(range(5))
    trials = run_study(task, results=tmp_path, study="s", resume=True, virtual=True).results.trials
    assert list(trials["trial"]) == list(range(6)), "the third of the four that the task asks for"
    assert trials["config"].iloc[-1]["tp-size"] == 8 and trials["failure_cause"].isna().iloc[-1]
