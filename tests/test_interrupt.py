"""A study that is interrupted or killed: nothing that was finished is lost, no process stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import processes
import pytest

from tuner.results import ResultStore

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["Ctrl-C", "SIGTERM", "SIGKILL"],
)
def test_finished_trials_are_kept_and_no_process_stays(
    tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    marker = f"served-{uuid4().hex}"
    task = tmp_path / "task.json"
    task.write_text(json.dumps(_long_task(marker)))
    command = [
        sys.executable,
        "-m",
        "tuner.cli",
        "run",
        str(task),
        "--results",
        str(tmp_path),
        "--study",
        "s",
    ]
    with (tmp_path / "out").open("w") as out:
        study = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "RAY_ADDRESS": ""})
    _await_two_trials(tmp_path / "s" / "trials", study)
    assert processes.appeared(marker), "the next trial starts its engine"
    study.send_signal(number)
    said = (tmp_path / "out").read_text
    assert study.wait(timeout=60) == exit_code, said()
    assert processes.gone(marker)
    kept = ResultStore(tmp_path, "s").read()
    assert len(kept.trials) >= 2
    assert not kept.skipped
    if number != signal.SIGKILL:
        assert "trials are kept" in said()


def _long_task(marker: str) -> dict[str, object]:
    return {
        "model": {"id_or_path": "llama-3.1-8b-instruct"},
        "parameters": {"chunked-prefill-size": {"type": "integer", "low": 512, "high": 8192}},
        "optimization": {"strategy": "random", "max_iterations": 100},
        "benchmark": {
            "model_name": marker,
            "traffic_scenarios": ["D(64,16)"],
            "num_concurrency": [1, 2],
            "max_requests_per_iteration": 10,
        },
    }


def _await_two_trials(folder: Path, study: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.parquet"))) < 2:
        assert study.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
