"""Studies as Ray jobs: they outlive the server, show in the dashboard, and end by `ray job stop`.

A job's driver runs on the head node, with the Python, the package and the data folder of the server.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.job_submission import JobSubmissionClient

import tuner
from tuner.errors import TunerError
from tuner.results import data_home
from tuner.serve.jobs import Job, JobState, Order

_STUDY, _ROOT = "tuner_study", "tuner_results"  # a job's metadata
_AGENT_WITHIN_S = 20.0
_STATES = {
    "PENDING": JobState.WAITING,
    "RUNNING": JobState.RUNNING,
    "STOPPED": JobState.STOPPED,
    "SUCCEEDED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
}


class RayJobs:
    """The jobs of the cluster that this process is in."""

    def __init__(self) -> None:
        self._connected: JobSubmissionClient | None = None

    def start(self, order: Order) -> Job:
        """Submits the command; its files travel as the job's working directory."""
        command = shlex.join([sys.executable, "-m", "tuner.cli", *order.words])  # Ray hands it to a shell
        surroundings = {
            "PYTHONPATH": str(Path(tuner.__file__).parent.parent),
            "XDG_DATA_HOME": str(data_home().parent),
        }
        with tempfile.TemporaryDirectory(prefix="tuner-order-") as folder:
            for name, content in order.files.items():
                Path(folder, name).write_bytes(content)
            name = self._submitted(
                entrypoint=command,
                submission_id=f"{order.study}-{uuid4().hex[:8]}",
                runtime_env={"working_dir": folder, "env_vars": surroundings},
                metadata={_STUDY: order.study, _ROOT: order.root},
            )
        return Job(name, order.study, JobState.WAITING, 0.0)

    def _submitted(self, **job: Any) -> str:
        """The job's id; waits for the agent that starts jobs, which a young cluster has yet to start."""
        deadline = time.monotonic() + _AGENT_WITHIN_S
        while True:
            try:
                return self._client().submit_job(**job)
            except (RuntimeError, OSError) as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise TunerError(f"Ray takes no job: {error}") from error
            time.sleep(0.5)

    def stop(self, job: str) -> None:
        """As `ray job stop`: SIGTERM, and SIGKILL after the cluster's RAY_JOB_STOP_WAIT_TIME_S (3 s)."""
        self._asked("stop_job", job)

    def known(self, root: str) -> list[Job]:
        """From the jobs' metadata: the cluster may run others' as well."""
        found = [
            Job(
                id=str(each.submission_id),
                study=each.metadata[_STUDY],
                state=_STATES[str(each.status)],
                started_s=(each.start_time or 0) / 1000,
                message=each.message or "",
                ended_s=(each.end_time or 0) / 1000,
            )
            for each in self._asked("list_jobs")
            if each.submission_id and _STUDY in (each.metadata or {}) and each.metadata.get(_ROOT) == root
        ]
        return sorted(found, key=lambda job: job.started_s, reverse=True)

    def output(self, job: str) -> str:
        """What `ray job logs` shows."""
        return str(self._asked("get_job_logs", job))

    def _asked(self, what: str, *words: str) -> Any:
        try:
            return getattr(self._client(), what)(*words)
        except (RuntimeError, OSError) as error:
            raise TunerError(f"Ray's jobs cannot be asked: {error}") from error

    def _client(self) -> JobSubmissionClient:
        if self._connected is None:
            address = ray.get_runtime_context().gcs_address  # or it takes any cluster of the machine
            self._connected = JobSubmissionClient(address)
        return self._connected
