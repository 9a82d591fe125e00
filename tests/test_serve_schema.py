"""The API holds what its own OpenAPI document says, whatever it is asked: schemathesis, over real HTTP."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving import TOKEN, JobsInMemory, served
from studies import make

from tuner.serve.jobs import JobState


@pytest.mark.slow
def test_the_api_keeps_to_its_document(tmp_path: Path) -> None:
    """No status, header or body that the document does not have; nothing without the token; no 500."""
    make(name="quickstart-1").write(tmp_path / "results")
    jobs = JobsInMemory(JobState.FAILED)  # or whoever follows a study that it began would wait for ever
    with served(tmp_path / "results", jobs=jobs) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}openapi.json"]
        command += ["--header", f"Authorization: Bearer {TOKEN}", "--max-examples", "4", "--seed", "1"]
        command += ["--phases", "coverage,fuzzing", "--request-timeout", "30", "--no-color"]
        # A task that fits the document's schema may be wrong all the same: only `tuner check` knows.
        command += ["--exclude-checks", "positive_data_acceptance"]
        env = {**os.environ, "PATH": ""}  # no program that a made-up task names is found
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        assert re.search(r"[1-9]\d\d passed", done.stdout), done.stdout[-3000:]
