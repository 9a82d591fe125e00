"""The job entry points on a real Ray head with token authentication, as `ray job submit` uses them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import processes
import pytest

from tuner.results import ResultStore

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Head:
    """A running head and how to reach it."""

    address: str
    env: dict[str, str]

    def job(
        self, *words: str, timeout_s: float = 240, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [_ray(), "job", words[0], "--address", self.address, *words[1:]]
        return subprocess.run(
            command,
            env=self.env if env is None else env,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` with eight logical GPUs, a dashboard and a token of its own."""
    folder = tmp_path_factory.mktemp("head")
    temp = Path("/tmp") / f"tuner-head-{uuid4().hex[:8]}"  # short: sockets below it
    token = folder / "token"
    token.write_text(uuid4().hex + uuid4().hex)
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"  # the job's `python`
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "XDG_DATA_HOME": str(folder)}
    ports = _free_ports(3)
    command = [
        *(_ray(), "start", "--head", "--block", "--num-gpus=8", "--disable-usage-stats"),
        *(f"--port={ports[0]}", f"--dashboard-port={ports[1]}", f"--dashboard-agent-listen-port={ports[2]}"),
        *(f"--temp-dir={temp}", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"),
    ]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    running = Head(f"http://127.0.0.1:{ports[1]}", env)
    try:
        deadline = time.monotonic() + 120
        while running.job("list").returncode:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(0.5)
        yield running
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        assert processes.gone(str(temp), within_s=30)


def test_a_submitted_task_is_tuned_and_its_results_kept(head: Head, tmp_path: Path) -> None:
    task = _task_file(f"served-{uuid4().hex}", trials=3)
    try:
        submitted = head.job(
            *("submit", "--working-dir", ".", "--", "python", "jobs/tune.py", task.name),
            *("--results", str(tmp_path), "--study", "job"),
        )
    finally:
        task.unlink()
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "[3/3]" in submitted.stdout and "Best:" in submitted.stdout
    later = head.job("logs", _id(submitted)).stdout
    assert "[3/3]" in later and "Best:" in later
    assert "succeeded" in head.job("status", _id(submitted)).stdout
    trials = ResultStore(tmp_path, "job").read().trials
    assert len(trials) == 3 and trials["failure_cause"].isna().all()
    reported = head.job(
        *("submit", "--working-dir", ".", "--", "python", "jobs/report.py", "job", "--results", str(tmp_path))
    )
    assert reported.returncode == 0 and "Best:" in reported.stdout, reported.stdout + reported.stderr


def test_a_stopped_job_keeps_its_trials_and_leaves_no_engine(head: Head, tmp_path: Path) -> None:
    marker = f"served-{uuid4().hex}"
    task = _task_file(marker, trials=100)
    try:
        submitted = head.job(
            *("submit", "--no-wait", "--working-dir", ".", "--", "python", "jobs/tune.py", task.name),
            *("--results", str(tmp_path), "--study", "job"),
        )
    finally:
        task.unlink()
    job = _id(submitted)
    trials = tmp_path / "job" / "trials"
    deadline = time.monotonic() + 120
    while not list(trials.glob("*.parquet")):
        assert time.monotonic() < deadline, head.job("logs", job).stdout
        time.sleep(0.2)
    stopped = head.job("stop", job)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert processes.gone(marker)
    kept = ResultStore(tmp_path, "job").read()
    assert len(kept.trials) >= 1 and not kept.skipped
    said = head.job("logs", job).stdout
    assert f"Interrupted; {len(kept.trials)} trials are kept" in said, said
    assert "was stopped" in head.job("status", job).stdout


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"optimisation": {}}, "optimisation: is not a known key, got {} (did you mean optimization?)"),
        ({"parameters": {"tp-size": [16]}}, "every configuration needs at least 16 GPU(s) on one node"),
    ],
    ids=["a wrong task", "too few GPUs"],
)
def test_a_job_that_cannot_run_fails_and_its_log_says_why(
    head: Head, task: dict[str, Any], said: str
) -> None:
    path = REPOSITORY / f"job-{uuid4().hex}.json"
    path.write_text(json.dumps({"model": {"id_or_path": "llama-3.1-8b-instruct"}, **task}))
    try:
        command = ("python", "jobs/tune.py", path.name)
        submitted = head.job("submit", "--working-dir", ".", "--", *command)
    finally:
        path.unlink()
    assert submitted.returncode == 1, submitted.stdout + submitted.stderr
    assert said in head.job("logs", _id(submitted)).stdout
    assert "failed" in head.job("status", _id(submitted)).stdout


def test_nobody_submits_without_the_token(head: Head, tmp_path: Path) -> None:
    env = {**head.env, "HOME": str(tmp_path)}
    del env["RAY_AUTH_TOKEN_PATH"]
    refused = head.job("submit", "--", "echo", "entered", env={**env, "RAY_AUTH_TOKEN": "0" * 64})
    assert refused.returncode != 0 and "entered" not in refused.stdout
    without = head.job("list", env={**env, "RAY_AUTH_MODE": "disabled"})
    assert without.returncode != 0 and "token" in (without.stdout + without.stderr).lower()


def _id(submitted: subprocess.CompletedProcess[str]) -> str:
    found = re.search(r"raysubmit_\w+", submitted.stdout)
    assert found, submitted.stdout + submitted.stderr
    return found[0]


def _task_file(marker: str, trials: int) -> Path:
    """A task file inside the repository, which is what a job's working directory carries."""
    path = REPOSITORY / f"job-{marker}.json"
    task = {
        "model": {"id_or_path": "llama-3.1-8b-instruct"},
        "parameters": {
            "tp-size": [1, 2],
            "chunked-prefill-size": {"type": "integer", "low": 512, "high": 8192},
        },
        "optimization": {"strategy": "random", "max_iterations": trials, "confirm": 0},
        "benchmark": {
            "model_name": marker,
            "traffic_scenarios": ["D(64,16)"],
            "num_concurrency": [2],
            "max_requests_per_iteration": 8,
        },
    }
    path.write_text(json.dumps(task))
    return path


def _ray() -> str:
    return str(Path(sys.executable).with_name("ray"))


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
