"""Results in an object store: the contract, a study from its start to its export, and what breaks.

MOTO_SERVER names moto's server, a program that speaks S3 (`make test` sets it up).
"""

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
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs
import pytest
from contracts.store_contract import ResultStoreContract, row

from tuner import run_study
from tuner.cli import main
from tuner.errors import ResultsError
from tuner.results import ResultStore, studies
from tuner.task import make_task

KEYS = {"AWS_ACCESS_KEY_ID": "loopback-only", "AWS_SECRET_ACCESS_KEY": f"s3cret{uuid4().hex}"}


@dataclass
class S3:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int

    def uri(self, path: str) -> str:
        return f"s3://{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def bucket(self) -> str:
        """The name of a new one."""
        name = f"bucket-{uuid4().hex}"
        filesystem, _ = pa.fs.FileSystem.from_uri(f"{self.uri(name)}&allow_bucket_creation=true")
        filesystem.create_dir(name)
        return name


def start(folder: Path) -> S3:
    probe = socket.create_server(("127.0.0.1", 0))
    port = int(probe.getsockname()[1])
    probe.close()
    command = [os.environ["MOTO_SERVER"], "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "s3.log").open("w") as log:
        server = S3(subprocess.Popen(command, stdout=log, stderr=log), port)
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return server
        except OSError:
            assert server.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        server = start(tmp_path_factory.mktemp("s3"))
        try:
            yield server
        finally:
            server.process.kill()
            server.process.wait()


class TestS3(ResultStoreContract):
    @pytest.fixture
    def root(self, s3: S3) -> str:
        return s3.uri(f"{s3.bucket()}/below/results")


def told(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


TASK = {
    "model": {"id_or_path": "llama-3.1-8b-instruct"},
    "parameters": {"tp-size": [1, 2]},
    "optimization": {"strategy": "grid", "confirm": 0},
    "benchmark": {
        "traffic_scenarios": ["D(64,16)"],
        "num_concurrency": [2],
        "max_requests_per_iteration": 6,
    },
}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_study_from_its_start_to_its_export(
    s3: S3, tmp_path: Path, data_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = s3.uri(f"{s3.bucket()}/studies")
    path = tmp_path / "task.json"
    path.write_text(json.dumps(TASK))
    assert told("run", str(path), "--results", root, "--study", "one") == 0
    assert told("run", str(path), "--results", root, "--study", "one") == 2  # there is one of that name
    ran = capfd.readouterr()
    assert s3.uri(root.partition("?")[0].removeprefix("s3://") + "/one") in ran.out
    assert told("studies", "--results", root) == 0
    assert told("report", "--results", root) == 0
    said = capfd.readouterr()
    assert re.search(r"^one +finished +3 of 3 ", said.out, re.MULTILINE) and "Best:" in said.out
    assert told("export", "one", "--results", root) == 0
    assert "sglang.launch_server" in capfd.readouterr().out
    found = ResultStore(root, "one").read()
    assert list(found.trials["trial"]) == [0, 1, 2] and not found.skipped
    page = ResultStore(root, "one")._fs.get_file_info(f"{ResultStore(root, 'one')._folder}/report.html")
    assert page.type == pa.fs.FileType.File
    kept = b"".join(path.read_bytes() for path in data_folder.rglob("*") if path.is_file())
    for text in (
        ran.out + ran.err + said.out + said.err,
        json.dumps(found.about),
        kept.decode(errors="replace"),
    ):
        assert KEYS["AWS_SECRET_ACCESS_KEY"] not in text


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_study_goes_on_from_there(s3: S3) -> None:
    root, task = s3.uri(f"{s3.bucket()}/studies"), make_task(TASK)
    first = run_study(task, results=root, study="one", seed=1).results.trials
    store = ResultStore(root, "one")
    store._fs.delete_file(f"{store._folder}/trials/00002.parquet")
    again = run_study(task, results=root, study="one", resume=True).results.trials
    assert list(again["started_at"][:2]) == list(first["started_at"][:2])
    assert len(again) == 3 and again["failure_cause"].isna().all()


WRITER = """
import sys
from tuner.results import ResultStore
store = ResultStore(sys.argv[1], "study")
store.create({})
for number in range(10_000):
    step = {"study": "study", "trial": number, "step": 0}
    requests = [{**step, "request": request} for request in range(50)]
    store.write_trial({"study": "study", "trial": number, "config": "{}"}, [step], requests)
    print(number, flush=True)
"""


def test_a_driver_that_is_killed_leaves_whole_trials_only(s3: S3) -> None:
    for wait_s in (0.0, 0.01, 0.02, 0.05, 0.11):
        root = s3.uri(f"{s3.bucket()}/studies")
        writer = subprocess.Popen([sys.executable, "-c", WRITER, root], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(3):
            last = int(writer.stdout.readline())
        time.sleep(wait_s)
        writer.send_signal(signal.SIGKILL)
        last = max([last, *map(int, writer.stdout.read().split())])
        writer.wait()
        found = ResultStore(root, "study").read()
        assert found.skipped == ()
        trials = list(found.trials["trial"])
        assert trials == list(range(len(trials))) and len(trials) in (last + 1, last + 2)
        assert list(found.steps["trial"]) == trials and len(found.requests) == 50 * len(trials)


def test_a_bucket_that_is_not_there_is_said_so(s3: S3) -> None:
    root = s3.uri("nobody-has-this/studies")
    with pytest.raises(ResultsError, match="nobody-has-this"):
        ResultStore(root, "study").require_new()
    assert told("report", "--results", root) in (1, 2)


def test_a_server_that_goes_away_is_an_error_of_ours(
    s3: S3, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = start(tmp_path)
    root = server.uri(f"{server.bucket()}/studies")
    store = ResultStore(root, "study")
    store.create({})
    store.write_trial(row(0), [], [])
    server.process.kill()
    server.process.wait()
    with pytest.raises(ResultsError, match="cannot write trial 1 to"):
        store.write_trial(row(1), [], [])
    with pytest.raises(ResultsError):
        store.read()
    with pytest.raises(ResultsError, match="cannot list"):
        studies(root)
    assert told("report", "study", "--results", root) == 1
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in "".join(capfd.readouterr())
