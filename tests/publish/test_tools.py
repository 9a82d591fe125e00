"""Published studies in the tools themselves: optuna-dashboard on loopback, MLflow's own client on SQLite.

PUBLISH_PACKAGES is the folder with both (`make test` makes it).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import studies
from contracts.scripted_server import free_port

from tuner.analysis import summary
from tuner.errors import ResultsError
from tuner.publish import publish

PACKAGES = os.environ["PUBLISH_PACKAGES"]


def asked(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.loads(answer.read())


# --- optuna-dashboard ----------------------------------------------------------------------------------


def test_optuna_dashboard_opens_the_study(tmp_path: Path) -> None:
    results = studies.make(stopped=[3]).results()
    storage, port = f"sqlite:///{tmp_path}/optuna.db", free_port()
    publish(results, {"optuna": storage})
    program = "from optuna_dashboard._cli import main; main()"
    command = [sys.executable, "-c", program, storage, "--host", "127.0.0.1", "--port", str(port)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([PACKAGES, os.environ.get("PYTHONPATH", "")])}
    with (tmp_path / "log").open("w") as log:
        dashboard = subprocess.Popen(command, stdout=log, stderr=log, env=env)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                [summary_] = asked(f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
                break
            except OSError:
                assert dashboard.poll() is None and time.monotonic() < deadline, (
                    tmp_path / "log"
                ).read_text()
                time.sleep(0.2)
        found = asked(f"http://127.0.0.1:{port}/api/studies/{summary_['study_id']}?after=0")
    finally:
        dashboard.terminate()
        dashboard.wait(timeout=30)
    assert summary_["study_name"] == "llama-tune"
    best = summary(results).best
    assert best is not None
    assert [_attribute(trial, "tuner_trial") for trial in found["best_trials"]] == [str(best["trial"])]
    states = {trial["state"] for trial in found["trials"]}
    assert states == {"Complete", "Fail", "Pruned"}


def _attribute(trial: dict[str, Any], name: str) -> str:
    [value] = [each["value"] for each in trial["user_attrs"] if each["key"] == name]
    return str(value)


# --- MLflow --------------------------------------------------------------------------------------------


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A tracking store in a folder of its own."""
    monkeypatch.setattr(sys, "path", [*sys.path, PACKAGES])  # behind ours: what both have is ours
    monkeypatch.chdir(tmp_path)  # where MLflow keeps artifacts unless told otherwise
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    yield f"sqlite:///{tmp_path}/mlflow.db"


def runs_of(uri: str) -> tuple[Any, list[Any]]:
    """The run of the study, and those of its trials in their order."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("llama-tune")
    assert experiment is not None
    every = list(client.search_runs([experiment.experiment_id], max_results=1000))
    [parent] = [run for run in every if run.data.tags["tuner.trial"] == "all"]
    children = [run for run in every if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(every) - 1
    return parent, sorted(children, key=lambda run: int(run.data.tags["tuner.trial"]))


def test_a_run_for_each_trial_below_one_for_the_study(uri: str) -> None:
    from mlflow.tracking import MlflowClient

    made = studies.make(stopped=[3], simulated=True)
    results = made.results()
    [published] = publish(results, {"mlflow": uri})
    assert (published.added, published.total) == (len(made.trials), len(made.trials))
    parent, trials = runs_of(uri)
    client = MlflowClient(tracking_uri=uri)
    assert {run.info.status for run in trials} == {"FINISHED", "FAILED", "KILLED"}
    for row, run in zip(made.trials, trials, strict=True):
        assert run.data.params == {name: str(value) for name, value in json.loads(row["config"]).items()}
        assert run.data.tags["simulated"] == "True" and run.data.tags["engine_version"] == "0.5.2"
        assert run.data.tags.get("failure_cause") == row["failure_cause"]
        assert run.data.metrics.get("score") == row["score"]
        levels = [step for step in made.steps if step["trial"] == row["trial"]]
        history = client.get_metric_history(run.info.run_id, "level/ttft_p99_s") if levels else []
        assert {point.step: point.value for point in history} == {
            step["step"]: step["ttft_p99_s"] for step in levels
        }
        assert abs(run.info.end_time - run.info.start_time - 1000 * row["duration_s"]) < 2
    best = summary(results).best
    assert best is not None and parent.data.tags["best_trial"] == str(best["trial"])
    assert parent.data.metrics["best_score"] == best["score"] and parent.info.status == "FINISHED"
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"report.html", "task.json"}
    page = Path(client.download_artifacts(parent.info.run_id, "report.html"))
    assert "llama-tune" in page.read_text() and "SIMULATED" in page.read_text()


def test_a_second_call_adds_only_what_is_new(uri: str) -> None:
    from mlflow.tracking import MlflowClient

    grid = studies.grid(studies.PARAMETERS, 6, 1)
    part = studies.make(grid[:3]).results()
    part.about["planned_trials"] = 7
    whole = studies.make(grid).results()
    for results, added, total in ((part, 4, 4), (part, 0, 4), (whole, 3, 7), (whole, 0, 7)):
        [published] = publish(results, {"mlflow": uri})
        assert (published.added, published.total) == (added, total)
        parent, trials = runs_of(uri)
        assert len(trials) == total
        assert parent.info.status == ("FINISHED" if total == 7 else "RUNNING")
    client = MlflowClient(tracking_uri=uri)
    cut_off = trials[2]
    client.update_run(cut_off.info.run_id, status="RUNNING")  # as of one that was killed half way
    [published] = publish(whole, {"mlflow": uri})
    assert (published.added, published.total) == (1, 7)
    assert cut_off.info.run_id not in {run.info.run_id for run in runs_of(uri)[1]}


def test_a_server_that_is_not_there_is_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ResultsError, match=r"cannot publish to http://127\.0\.0\.1") as failed:
        publish(studies.make(requests=2).results(), {"mlflow": f"http://127.0.0.1:{free_port()}"})
    assert "\n" not in str(failed.value)
