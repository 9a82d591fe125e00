"""Engines in a container: the command, the contract of every engine, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import processes
import pytest
from contracts.engine_contract import EngineContract
from fake_docker import ROOT, FakeDocker

from tuner.engines import container
from tuner.engines.base import Engine
from tuner.engines.container import Container, Runtime
from tuner.engines.server import diagnose
from tuner.engines.sglang import SGLangEngine
from tuner.engines.vllm import VllmEngine
from tuner.errors import EngineUnavailable
from tuner.export import IMAGES
from tuner.failures import Cause, Stage
from tuner.task import Task, make_task

DOCKER, PODMAN = Runtime("docker", "/usr/bin/docker"), Runtime("podman", "/usr/bin/podman")


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDocker]:
    """The fake daemon, with its command alone on PATH."""
    daemon = FakeDocker(tmp_path / "docker")
    monkeypatch.setenv("PATH", str(daemon.bin))
    yield daemon
    daemon.close()


def task_with(**sections: Any) -> Task:
    return make_task(
        {
            "base_runtime": "sglang",
            "runtime_image_tag": "v0.5.2-cu126",
            "model": {"id_or_path": "llama-3.1-8b-instruct"},
            "benchmark": {"model_name": f"served-{uuid4().hex}"},
            "parameters": {"tp-size": [1, 2]},
            **sections,
        }
    )


def engine_with(**sections: Any) -> SGLangEngine:
    return SGLangEngine(task_with(**sections))


class InAContainer(EngineContract):
    """What holds for every engine that has an image."""

    @pytest.fixture(autouse=True)
    def daemon(self, docker: FakeDocker) -> Iterator[FakeDocker]:
        yield docker
        assert not docker.running

    def test_the_tag_is_its_version(self, engine: Engine) -> None:
        assert engine.version() == "v0.5.2-cu126"

    def test_the_container_is_removed_by_name(
        self, engine: Engine, daemon: FakeDocker, tmp_path: Path
    ) -> None:
        with self._launch(engine, {}, tmp_path):
            [run] = [call for call in daemon.calls if call[0] == "run"]
        assert daemon.calls[-1] == ["rm", "-f", run[run.index("--name") + 1]]

    def test_it_runs_the_engines_own_image(self, engine: Engine, daemon: FakeDocker, tmp_path: Path) -> None:
        with self._launch(engine, {}, tmp_path):
            [run] = [call for call in daemon.calls if call[0] == "run"]
        assert f"{IMAGES[engine.name]}:v0.5.2-cu126" in run


class TestSGLangInAContainer(InAContainer):
    @pytest.fixture
    def engine(self) -> Engine:
        return engine_with()

    @pytest.fixture
    def hopeless(self) -> Mapping[str, Any]:
        return {"mem-fraction-static": 0.05}

    def test_values_of_variables_are_on_no_command_line(
        self, daemon: FakeDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        engine = engine_with(engine={"env": {"HF_TOKEN": "${HF_TOKEN}", "NCCL_DEBUG": "INFO"}})
        with self._launch(engine, {}, tmp_path):
            assert not processes.with_marker("hf_secret")
        [run] = [call for call in daemon.calls if call[0] == "run"]
        assert "HF_TOKEN" in run and "hf_secret" not in " ".join(run)
        assert daemon.environments[-1]["HF_TOKEN"] == "hf_secret"
        assert daemon.environments[-1]["NCCL_DEBUG"] == "INFO"


class TestVllmInAContainer(InAContainer):
    @pytest.fixture
    def engine(self) -> Engine:
        return VllmEngine(task_with(base_runtime="vllm"))

    @pytest.fixture
    def hopeless(self) -> Mapping[str, Any]:
        return {"gpu-memory-utilization": 0.05}

    def test_its_own_variables_are_passed(self, engine: Engine, daemon: FakeDocker, tmp_path: Path) -> None:
        with self._launch(engine, {}, tmp_path):
            assert daemon.environments[-1]["VLLM_SERVER_DEV_MODE"] == "1"


# --- nothing is left behind ----------------------------------------------------------------------------

DRIVER = """
import sys, time
from pathlib import Path
from tuner.engines.sglang import SGLangEngine
from tuner.task import make_task
task = make_task({"base_runtime": "sglang", "runtime_image_tag": "v1", "parameters": {"tp-size": [1]},
                  "model": {"id_or_path": "llama-3.1-8b-instruct"}, "benchmark": {"model_name": sys.argv[1]}})
with SGLangEngine(task).launch({}, gpu_ids=["0"], log_path=Path(sys.argv[2]), timeout_s=60):
    print("serves", flush=True)
    time.sleep(600)
"""


def until(condition: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_container_goes_with_a_driver_that_is_killed(
    how: signal.Signals, docker: FakeDocker, tmp_path: Path
) -> None:
    marker = f"served-{uuid4().hex}"
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, marker, str(tmp_path / "engine.log")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdout is not None and driver.stdout.readline() == "serves\n"
        assert docker.running
        driver.send_signal(how)
        driver.wait(60)
    until(lambda: not docker.running, "docker rm -f")
    assert processes.gone(marker)


def test_the_container_goes_when_the_watchdog_is_killed(docker: FakeDocker, tmp_path: Path) -> None:
    engine = engine_with()
    marker = engine.task.served_model_name
    with engine.launch({}, gpu_ids=[], log_path=tmp_path / "log", timeout_s=60) as server:
        [watchdog] = [pid for pid, line in processes.with_marker(marker).items() if "watchdog.py" in line]
        os.kill(watchdog, signal.SIGKILL)
        until(lambda: not server.alive(), "the end of the server")
        assert docker.running  # the container itself does not notice
    assert not docker.running


# --- the command ---------------------------------------------------------------------------------------


def test_the_docker_command(tmp_path: Path) -> None:
    box = Container(DOCKER, "i:v1", ["0", "3"], [Path("/models/m")], Path("/cache"), ["A", "HF_TOKEN"])
    assert box.command(["python3", "-m", "x"], "n") == [
        *("/usr/bin/docker", "run", "--rm", "--name", "n", "--label", "inference-autotuner"),
        *("--gpus", '"device=0,3"', "--network", "host", "--ipc", "host"),
        *("-v", "/models/m:/models/m:ro", "-v", "/cache:/cache", "-e", "A", "-e", "HF_TOKEN"),
        *("--entrypoint", "python3", "i:v1", "-m", "x"),
    ]
    assert box.removal("n") == ["/usr/bin/docker", "rm", "-f", "n"]


@pytest.mark.parametrize(
    ("found", "gpu_ids", "words"),
    [
        (DOCKER, None, ["--gpus", "all"]),
        (DOCKER, ["GPU-8f1c"], ["--gpus", '"device=GPU-8f1c"']),
        (PODMAN, None, ["--device", "nvidia.com/gpu=all"]),
        (PODMAN, ["0", "3"], ["--device", "nvidia.com/gpu=0", "--device", "nvidia.com/gpu=3"]),
    ],
)
def test_gpus_of_each_runtime(found: Runtime, gpu_ids: list[str] | None, words: list[str]) -> None:
    command = Container(found, "i", gpu_ids).command(["x"], "n")
    assert " ".join(words) in " ".join(command)
    assert not {"--gpus", "--device"} & set(Container(found, "i", []).command(["x"], "n"))


def test_a_local_model_is_mounted_and_a_hub_id_is_not(docker: FakeDocker, tmp_path: Path) -> None:
    local = engine_with(model={"id_or_path": str(tmp_path)})._container(None)
    assert local is not None and local.folders == [tmp_path]
    remote = engine_with()._container(None)
    assert remote is not None and remote.folders == []


# --- where there is none -------------------------------------------------------------------------------


def test_without_a_runtime_one_line_says_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailable) as missing:
        engine_with().version()
    text = str(missing.value)
    assert f"sglang is not installed for {sys.executable}" in text
    assert "no container runtime (docker or podman) is on PATH" in text
    assert "pip install sglang" in text and "engine.python" in text and "\n" not in text


def test_a_daemon_that_does_not_answer_is_told(docker: FakeDocker) -> None:
    docker.close()
    with pytest.raises(EngineUnavailable, match="docker does not answer `docker info`") as missing:
        engine_with().version()
    assert "\n" not in str(missing.value)


def test_podman_is_taken_where_docker_does_not_answer(
    docker: FakeDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    podman = FakeDocker(tmp_path / "podman", name="podman")
    docker.close()
    monkeypatch.setenv("PATH", f"{docker.bin}:{podman.bin}")
    found = container.runtime()
    podman.close()
    assert found == Runtime("podman", str(podman.bin / "podman"))


def test_an_image_that_is_not_here_is_not_pulled_for_a_check(docker: FakeDocker) -> None:
    engine_with().check({"no-such-flag": 1})
    assert [call[0] for call in docker.calls] == ["info", "image"]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("docker: Error response from daemon: manifest for lmsysorg/sglang:v9 not found", Cause.INTERNAL),
        ("Error: initializing source docker://lmsysorg/sglang:v9: reading manifest v9", Cause.INTERNAL),
        (
            "docker: Error response from daemon: could not select device driver "
            '"" with capabilities: [[gpu]]',
            Cause.DRIVER,
        ),
        ("nvidia-container-cli: initialization error: nvml error: driver not loaded", Cause.DRIVER),
        ("Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=9", Cause.DRIVER),
    ],
)
def test_what_the_runtime_says_is_the_machines_fault(line: str, cause: Cause) -> None:
    failure = diagnose(Stage.START, 125, f"Unable to find image locally\n{line}\n", container.SIGNS)
    assert (failure.cause, failure.detail) == (cause, line)
    assert cause.infrastructure
