"""A node whose network is cut in the middle of a trial: it stands in a network namespace of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import processes
import pytest
from node_studies import Study, document, with_plugins

from tuner.engines.server import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]

IMPATIENT = {  # how soon either side takes the other for gone: by default that is half a minute and more
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "8",
    "RAY_grpc_client_keepalive_time_ms": "2000",
    "RAY_grpc_client_keepalive_timeout_ms": "2000",
}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Link:
    """Two joined network devices: one here, the other in a network namespace of its own."""

    def __init__(self) -> None:
        self.name = f"t{uuid4().hex[:8]}"
        network = f"10.213.{os.getpid() % 250}"
        self.here, self.there = f"{network}.1", f"{network}.2"

    def make(self) -> None:
        peer = f"{self.name}p"
        ip("netns", "add", self.name)
        ip("link", "add", self.name, "type", "veth", "peer", "name", peer)
        ip("link", "set", peer, "netns", self.name)
        ip("addr", "add", f"{self.here}/30", "dev", self.name)
        ip("link", "set", self.name, "up")
        ip("-n", self.name, "addr", "add", f"{self.there}/30", "dev", peer)
        ip("-n", self.name, "link", "set", peer, "up")
        ip("-n", self.name, "link", "set", "lo", "up")

    def cut(self) -> None:
        ip("link", "set", self.name, "down")

    def remove(self) -> None:
        for words in (["link", "del", self.name], ["netns", "del", self.name]):
            with suppress(subprocess.CalledProcessError):
                ip(*words)


@pytest.fixture
def link() -> Iterator[Link]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("takes root and the command `ip` (of iproute2)")
    made = Link()
    try:
        made.make()
    except subprocess.CalledProcessError as error:
        made.remove()
        pytest.skip(f"no network namespace can be made here: {error.stderr.strip()}")
    try:
        yield made
    finally:
        made.remove()


class Nodes:
    """A head without GPUs, and nodes with two logical ones each, that only `ray start` knows how to part."""

    def __init__(self, link: Link, folder: Path) -> None:
        self._link, self._folder = link, folder
        self._temp = Path("/tmp") / f"tuner-cut-{uuid4().hex[:8]}"
        self.address = f"{link.here}:{free_port()}"
        self._started: list[subprocess.Popen[bytes]] = []
        port = self.address.rpartition(":")[2]
        self._start(
            [],
            "--head",
            f"--port={port}",
            "--num-gpus=0",
            "--num-cpus=0",
            f"--temp-dir={self._temp}",
            "--include-dashboard=false",
            f"--node-ip-address={link.here}",
        )

    def add(self, *, behind_the_link: bool) -> None:
        within = ["ip", "netns", "exec", self._link.name] if behind_the_link else []
        own = self._link.there if behind_the_link else self._link.here
        self._start(
            within, f"--address={self.address}", f"--node-ip-address={own}", "--num-gpus=2", "--num-cpus=2"
        )

    def _start(self, within: list[str], *options: str) -> None:
        ray = str(Path(sys.executable).parent / "ray")
        agent = f"--dashboard-agent-listen-port={free_port()}"
        env = {**os.environ, **IMPATIENT, "PYTHONPATH": with_plugins(), "RAY_ADDRESS": ""}
        path = self._folder / f"node-{len(self._started)}.log"
        with path.open("w") as log:
            command = [*within, ray, "start", "--block", "--disable-usage-stats", agent, *options]
            node = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        self._started.append(node)
        deadline = time.monotonic() + 120
        while "will now block" not in path.read_text():
            assert node.poll() is None and time.monotonic() < deadline, path.read_text()
            time.sleep(0.2)

    def end(self) -> None:
        for node in self._started:
            node.kill()
            node.wait()
        for pid in processes.with_marker(str(self._temp)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._temp, ignore_errors=True)


@pytest.fixture
def nodes(link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a head would ask for a token that nodes do not know
    running = Nodes(link, tmp_path)
    try:
        yield running
    finally:
        running.end()


def test_a_trial_behind_a_link_that_is_cut_runs_again_elsewhere(
    link: Link, nodes: Nodes, tmp_path: Path
) -> None:
    marker = f"served-{uuid4().hex}"
    nodes.add(behind_the_link=True)
    study = Study(nodes.address, tmp_path, document(marker, trials=4, level_s=2.0))
    try:
        study.until(lambda: study.rows() >= 1 and processes.with_marker(marker), "a trial")
        cut_off = processes.with_marker(marker)
        link.cut()
        nodes.add(behind_the_link=False)
        trials = study.ended().trials
    finally:
        study.process.kill()
    assert sorted(trials["trial"]) == list(range(4))
    assert trials["failure_cause"].isna().all(), "no configuration is blamed"
    lost = trials[trials["attempts"] > 1]
    assert len(lost) >= 1 and lost["lost"].str.contains("node lost").all()
    assert processes.gone(marker, within_s=60), "the node that was cut off ends its engines by itself"
    assert cut_off
