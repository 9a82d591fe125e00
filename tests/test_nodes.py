"""Nodes that come, go and misbehave in the middle of a study: a cluster of several nodes on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import processes
import pytest
from node_studies import Study, document, with_plugins
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BAD_NODE = "FAULTY_ENGINE_BAD_NODE"  # as the plug-in reads it


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without GPUs; the tests add nodes with two logical ones each."""
    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False}
    running = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield running
    finally:
        running.shutdown()


def add_node(cluster: Cluster, *, bad: bool = False) -> Any:
    env = {"PYTHONPATH": with_plugins(), **({BAD_NODE: "1"} if bad else {})}
    return cluster.add_node(num_cpus=2, num_gpus=2, env_vars=env)


def test_a_node_that_dies_in_mid_study_and_another_that_comes(cluster: Cluster, tmp_path: Path) -> None:
    marker = f"served-{uuid4().hex}"
    first, _ = add_node(cluster), add_node(cluster)
    study = Study(cluster.address, tmp_path, document(marker, trials=10, level_s=2.0))
    try:
        study.until(lambda: study.rows() >= 2 and processes.with_marker(marker), "trials")
        before = {path.name: path.read_bytes() for path in (tmp_path / "s" / "trials").glob("*.parquet")}
        cluster.remove_node(first, allow_graceful=False)  # SIGKILL to its raylet
        add_node(cluster)
        results = study.ended()
    finally:
        study.process.kill()
    trials = results.trials
    assert sorted(trials["trial"]) == list(range(10)), (
        "each once, those that were lost under their own number"
    )
    assert trials["failure_cause"].isna().all()
    lost = trials[trials["attempts"] > 1]
    assert len(lost) >= 1
    assert lost["lost"].str.contains("node lost").all()
    for name, content in before.items():
        assert (tmp_path / "s" / "trials" / name).read_bytes() == content
    assert processes.gone(marker)


def test_a_worker_process_that_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    marker = f"served-{uuid4().hex}"
    add_node(cluster)
    study = Study(cluster.address, tmp_path, document(marker, trials=3, level_s=2.0))
    try:
        actors: set[int] = set()  # none while the watchdog detaches: who is looked at may be gone by then
        study.until(
            lambda: actors or actors.update(processes.at_the_other_end(processes.with_marker(marker))),
            "an engine, and the process that started it",
        )
        for actor in actors:
            os.kill(actor, signal.SIGKILL)
        trials = study.ended().trials
    finally:
        study.process.kill()
    assert sorted(trials["trial"]) == [0, 1, 2]
    assert trials["failure_cause"].isna().all()
    assert trials["attempts"].max() == 2
    assert processes.gone(marker)


def test_a_node_that_loses_every_trial_is_left_out_and_named(cluster: Cluster, tmp_path: Path) -> None:
    add_node(cluster)
    bad = add_node(cluster, bad=True)
    study = Study(cluster.address, tmp_path, document("served", trials=8, level_s=1.0))
    try:
        results = study.ended()
    finally:
        study.process.kill()
    trials = results.trials
    assert sorted(trials["trial"]) == list(range(8))
    assert trials["failure_cause"].isna().all(), "no configuration is blamed"
    assert trials["lost"].dropna().str.contains("uncorrectable ECC error").all()
    assert 3 <= (trials["attempts"] > 1).sum() <= 4, "what ran there by then, and nothing after"
    assert len(results.about["nodes_left_out"]) == 1
    assert "is left out from now on" in study.log()
    assert bad.node_id[:8] in study.log()


def test_where_every_trial_is_lost_the_study_ends_and_goes_on_later(cluster: Cluster, tmp_path: Path) -> None:
    bad = add_node(cluster, bad=True)
    task = document("served", trials=3, level_s=1.0)
    study = Study(cluster.address, tmp_path, task)
    try:
        trials = study.ended(exit_code=1).trials
        assert list(trials["failure_cause"]) == ["driver error"] * len(trials)
        assert "3 trials in a row were lost" in study.said()
        cluster.remove_node(bad, allow_graceful=False)
        add_node(cluster)
        study = Study(cluster.address, tmp_path, task)
        trials = study.ended().trials
    finally:
        study.process.kill()
    assert trials["failure_cause"].isna().sum() == 3
    assert (trials["kind"][trials["failure_cause"].isna()] == "baseline").sum() == 1


def test_where_no_node_is_left_the_study_waits_ends_and_goes_on_later(
    cluster: Cluster, tmp_path: Path
) -> None:
    marker = f"served-{uuid4().hex}"
    only = add_node(cluster)
    task = document(marker, trials=4, level_s=2.0)
    study = Study(cluster.address, tmp_path, task)
    try:
        study.until(lambda: study.rows() >= 1 and processes.with_marker(marker), "a trial")
        cluster.remove_node(only, allow_graceful=False)
        study.ended(exit_code=1)
        assert "waiting for a node: a trial needs 1 GPUs on one node" in study.said()
        assert processes.gone(marker)
        add_node(cluster)
        study = Study(cluster.address, tmp_path, task)
        trials = study.ended().trials
    finally:
        study.process.kill()
    finished = trials[trials["failure_cause"].isna()]
    assert len(finished) == 4
