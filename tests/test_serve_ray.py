"""`tuner serve` on its own Ray head: studies as Ray jobs, from the first trial to the report."""

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
from browser import CHROMIUM, MISSING, browser
from serving import Served
from test_serve import _events as events

from tuner.results import ResultStore

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = re.findall(r"^```bash\n(.*?)^```", (REPOSITORY / "docs" / "serve.md").read_text(), re.M | re.S)
TASK: dict[str, Any] = {
    "parameters": {
        "tp-size": [1, 2, 4],
        "chunked-prefill-size": {"type": "integer", "low": 512, "high": 8192},
    },
    "optimization": {"strategy": "random", "max_iterations": 16, "confirm": 0},
    "benchmark": {"traffic_scenarios": ["D(64,16)"], "num_concurrency": [4]},
}
ENDLESS = {**TASK, "optimization": {**TASK["optimization"], "max_iterations": 10_000}}  # till cancelled


@dataclass
class Running(Served):
    """The command `tuner serve`, as it runs."""

    data: Path = Path()
    port: int = 0
    ray: Path = Path()  # the folder of its Ray


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Started with a folder of its own, ended by SIGTERM; then nothing of it is left."""
    data = tmp_path_factory.mktemp("serve")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"XDG_DATA_HOME": str(data), "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(data)}
    command = [sys.executable, "-m", "tuner.cli", "serve", "--port", str(port), "--num-gpus", "8"]
    with (data / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, env=env, cwd=data, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert process.stdout is not None
    said = ""
    while "Ctrl-C" not in said:
        line = process.stdout.readline()
        assert line, (data / "errors").read_text()
        said += line
    found = re.search(r"Open +(\S+)#token=(\S+)", said)
    assert found, said
    dashboard = re.search(r"Ray +http://127.0.0.1:(\d+)", said)
    assert dashboard, said
    folder = _folder_of(dashboard[1])
    try:
        root = data / "autotuner" / "results"
        yield Running(found[1], root, token=found[2], data=data, port=port, ray=folder)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, (data / "errors").read_text()
        process.stdout.close()
        assert not re.search(r"^INFO .* serve ", (data / "errors").read_text(), re.MULTILINE)
        assert processes.gone(str(folder)) and not folder.exists()
        assert not [*data.glob("pymp-*"), *data.glob("tuner-*")], "sockets of what Ray killed"
        assert not processes.listening(port)


def _folder_of(dashboard: str) -> Path:
    """The temporary folder of the Ray whose dashboard is at that port."""
    heads = processes.with_marker(f"--dashboard-port={dashboard} ").values()
    found = {match[1] for line in heads if (match := re.search(r"--temp-dir=(/tmp/tuner-\w+)/ray", line))}
    assert len(found) == 1, heads
    return Path(found.pop())


def test_a_study_from_its_task_to_its_report(server: Running) -> None:
    """Submitted, followed, cancelled midway, resumed to its end: no trial is lost, none is run again."""
    load = {**TASK["benchmark"], "max_requests_per_iteration": 4000, "max_time_per_iteration": 10_000}
    task = {**TASK, "benchmark": load}  # long enough to be cancelled midway
    started = server.post("studies?study=whole&virtual=true&seed=1", task)
    assert started.status == 201, started.text
    states, cancelled = [], False
    for kind, data in events(server, "whole"):
        if kind != "study":
            continue
        states.append(data["state"])
        if not cancelled and data["progress"] and data["progress"]["finished"] >= 1:
            assert data["progress"]["best"]["config"] is not None and data["simulated"]
            assert server.post("studies/whole/cancel").status == 202
            cancelled = True
    assert cancelled and states[0] == "starting" and "running" in states and states[-1] == "interrupted"
    before = server.ask("studies/whole/trials").json
    assert 1 <= len(before) < 16

    deadline = time.monotonic() + 60
    while (resumed := server.post("studies/whole/resume")).status == 409:
        assert time.monotonic() < deadline, resumed.text  # its job ends a moment after its study
        time.sleep(0.2)
    assert resumed.status == 202 and resumed.json["state"] == "starting"
    last = [data for kind, data in events(server, "whole") if kind == "study"][-1]
    assert last["state"] == "finished" and last["gain"], last
    trials = server.ask("studies/whole/trials").json
    numbers = [trial["trial"] for trial in trials]  # one that was under way is run again under a new number
    assert len(trials) == len(set(numbers)) == 16 and numbers == sorted(numbers)
    assert trials[: len(before)] == before

    assert "SIMULATED" in server.ask("studies/whole/report").text
    assert server.ask("studies/whole/best").json["launch"].count("sglang.launch_server") == 1
    assert "Study whole: done" in server.ask("studies/whole/log").text
    assert "Best:" in server.ask("studies/whole/log?job=true").text
    assert len(ResultStore(server.root, "whole").read().trials) == 16


def test_a_cancelled_study_leaves_no_engine(server: Running) -> None:
    marker = f"served-{uuid4().hex}"
    task = {**TASK, "benchmark": {**TASK["benchmark"], "model_name": marker}}
    assert server.post("studies?study=real", task).status == 201
    assert processes.appeared(marker)
    assert server.post("studies/real/cancel").status == 202
    assert processes.gone(marker)
    assert [data for _, data in events(server, "real")][-1] == "interrupted"


def test_a_task_that_cannot_run_here_says_why(server: Running) -> None:
    task = {**TASK, "parameters": {"tp-size": [16]}}
    assert server.post("studies?study=large", task).status == 201
    last = [data for kind, data in events(server, "large") if kind == "study"][-1]
    assert last["state"] == "broken" and "at least 16 GPU(s) on one node" in last["reason"]


def test_only_this_machine_is_listened_to_and_the_token_is_nowhere(server: Running) -> None:
    assert server.token is not None
    assert processes.listening(server.port) == {"127.0.0.1"}
    assert server.ask("studies", token=None).status == 401
    assert not processes.with_marker(server.token)
    folders = [server.ray, server.data]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path.name for path in files if server.token.encode() in path.read_bytes()] == ["token"]


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_a_study_is_started_and_watched_in_a_browser(server: Running) -> None:
    with browser() as page:
        page.open(f"{server.url}#token={server.token}")
        page.wait_for("document.querySelector('h1')")
        assert "token" not in page.run("location.href")
        page.click("nav a[href='#/new']")
        page.wait_for("document.querySelector('#task')")
        page.type("#task", json.dumps({"task_name": "watched", **ENDLESS}))
        page.click("#virtual")
        page.click("form button:not([type=button])")
        page.wait_for("location.hash.startsWith('#/studies/watched-')")
        page.wait_for("document.querySelector('#plot circle') && document.querySelector('#best-so-far')")
        page.wait_for_text("SIMULATED")
        page.click("#cancel")
        page.wait_for("document.querySelector('.state-interrupted') && document.querySelector('#launch')")
        assert not page.complaints


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_the_commands_of_the_document(number: int, server: Running, tmp_path_factory: Any) -> None:
    folder = server.data / "shell"
    if not folder.exists():
        folder.mkdir()
        (folder / "task.json").write_text(json.dumps(TASK))
    env = {**os.environ, "XDG_DATA_HOME": str(server.data), "URL": server.url.rstrip("/")}
    script = SCRIPTS[number].replace("http://127.0.0.1:8000", env["URL"])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (script, done.stdout, done.stderr)
    assert done.stdout.strip() or "-o" in script
