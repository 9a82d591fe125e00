"""A cluster of several kinds of GPU that several studies share: where their trials run, and when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tuner.accelerators import LABEL, required
from tuner.engines import make_engine
from tuner.errors import NotEnoughGpus, TaskError
from tuner.evaluate import Report
from tuner.failures import Cause, Failure, Stage
from tuner.objective import FAILED_TIER, Score, Slo
from tuner.results import ResultStore
from tuner.rows import TrialInfo, trial_row
from tuner.sharing import Demand, Sharing
from tuner.task import make_task

HAS = {"H100": 8.0, "A100-80G": 4.0, "": 2.0, "L4": 0.0}


@pytest.mark.parametrize(("wanted", "kind"), [(None, ""), ("H100", "H100"), ("a100-80g", "A100-80G")])
def test_a_kind_that_is_there_is_found(wanted: str | None, kind: str) -> None:
    assert required(wanted, HAS, simulated=False) == required(wanted, HAS, simulated=True) == kind


@pytest.mark.parametrize(
    ("wanted", "gpus", "there"),
    [("H200", HAS, "2 of no known kind, 4 A100-80G, 8 H100"), ("L4", HAS, "8 H100"), ("H100", {}, "none")],
)
def test_a_kind_that_is_not_there_is_told_with_what_is(
    wanted: str, gpus: dict[str, float], there: str
) -> None:
    with pytest.raises(NotEnoughGpus, match=rf"no node has {wanted}; the cluster's GPUs: .*{there}"):
        required(wanted, gpus, simulated=False)
    assert required(wanted, gpus, simulated=True) == ""


@pytest.mark.parametrize("kind", ["", "a b", "x,y", "!in(a)", 1])
def test_what_is_no_kind_is_refused(kind: Any) -> None:
    with pytest.raises(TaskError, match=r"resources\.accelerator_type"):
        make_task({"resources": {"accelerator_type": kind}})


@pytest.mark.parametrize(("config", "model"), [({"tp-size": 2}, "H100"), ({"device": "cpu"}, None)])
def test_a_row_has_the_kind_where_nvml_says_nothing(config: dict[str, Any], model: str | None) -> None:
    task = make_task({"base_runtime": "sglang", "model": {"id_or_path": "m"}})
    info = TrialInfo(0, "search", config, ["0"], datetime.now(UTC), 1.0, "node", "", accelerator="H100")
    score = Score(None, None, FAILED_TIER, Slo().judge([]))
    failure = Failure(Stage.START, Cause.CRASH, "x")
    row = trial_row(task, make_engine(task), info, Report(1, 0, score, done=True, failure=failure))
    assert row["gpu_model"] == model


# --- a cluster of two kinds -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head without GPUs, a node with four H100s and one with two A100s; its address."""
    head = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    env = {"XDG_DATA_HOME": str(tmp_path_factory.mktemp("nodes"))}
    try:
        for kind, gpus in (("H100", 4), ("A100", 2)):
            cluster.add_node(num_cpus=4, num_gpus=gpus, labels={LABEL: kind}, env_vars=env)
        yield cluster.address
    finally:
        cluster.shutdown()


def small(**sections: Any) -> dict[str, Any]:
    return {
        "model": {"id_or_path": "llama-3.1-8b-instruct"},
        "parameters": {"tp-size": [1, 2], "chunked-prefill-size": [512, 1024, 2048, 4096]},
        "optimization": {"strategy": "random", "max_iterations": 5, "confirm": 0, "seed": 1},
        "benchmark": {
            "traffic_scenarios": ["D(64,16)"],
            "num_concurrency": [2],
            "max_requests_per_iteration": 6,
        },
        **sections,
    }


def on(address: str, root: Path, study: str, task: dict[str, Any]) -> subprocess.Popen[str]:
    """`tuner run` on the cluster, as a user starts it."""
    path = root / f"{study}.json"
    path.write_text(json.dumps(task))
    env = {**os.environ, "RAY_ADDRESS": address}
    command = [sys.executable, "-m", "tuner.cli", "run", str(path), "--results", str(root), "--study", study]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "gpus"), [("H100", 4), ("a100", 2)])
def test_trials_run_on_the_kind_that_their_task_requires(
    mixed: str, kind: str, gpus: int, tmp_path: Path
) -> None:
    task = small(
        parameters={"tp-size": [1, 2, 4], "schedule-policy": ["lpm", "fcfs"]},
        optimization={"strategy": "grid", "confirm": 0},
        resources={"accelerator_type": kind},
    )
    study = on(mixed, tmp_path, "s", task)
    said, _ = study.communicate(timeout=240)
    trials = ResultStore(tmp_path, "s").read().trials
    ran = trials[trials["failure_cause"].isna()]
    assert study.returncode == 0, said
    assert set(ran["gpu_model"]) == {kind.upper()}
    assert ran["gpus"].max() == gpus
    refused = trials[trials["failure_cause"] == "no such GPUs"]
    assert len(refused) == (0 if gpus == 4 else 2)
    assert all(f"the largest node has {gpus}" in text for text in refused["failure_detail"])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["H100", "A100"], ids=["two at once", "one at a time"])
def test_a_study_that_comes_second_does_not_wait_for_the_end_of_the_first(
    mixed: str, kind: str, tmp_path: Path
) -> None:
    """Their trials are all of two GPUs, so that no actor of the first would ever give back its own."""
    more = {
        "parameters": {"tp-size": [2], "chunked-prefill-size": {"type": "integer", "low": 512, "high": 8192}}
    }
    counts = {"first": 20, "second": 6}
    search = {**small()["optimization"], "early_stopping": False, "baseline": False}
    tasks = {
        name: small(
            resources={"accelerator_type": kind}, optimization={**search, "max_iterations": n}, **more
        )
        for name, n in counts.items()
    }
    first = on(mixed, tmp_path, "first", tasks["first"])
    while not list((tmp_path / "first" / "trials").glob("*.parquet")):
        assert first.poll() is None
        time.sleep(0.1)
    second = on(mixed, tmp_path, "second", tasks["second"])
    for study in (first, second):
        said, _ = study.communicate(timeout=280)
        assert study.returncode == 0, said
    trials = {name: ResultStore(tmp_path, name).read().trials for name in counts}
    assert {name: len(each) for name, each in trials.items()} == counts
    assert all(each["failure_cause"].isna().all() for each in trials.values())
    end = trials["first"]["started_at"].max()
    meanwhile = trials["second"]["started_at"] < end
    assert meanwhile.sum() >= 3, trials


# --- the share of a study -------------------------------------------------------------------------------


@dataclass
class Watch:
    """A clock, and a cluster that is looked at."""

    seen: Demand
    now: float = 0.0
    looks: int = 0

    def ask(self) -> Demand:
        self.looks += 1
        return self.seen

    def shares(self, *times: float) -> list[float]:
        sharing, found = Sharing(self.ask, lambda: self.now), []
        for self.now in times:
            found.append(sharing.share())
        return found


ME, OTHER, THIRD = "01", "02", "03"
BOTH = frozenset({ME, OTHER})


@pytest.mark.parametrize(
    ("seen", "share"),
    [
        (Demand(ME), 1.0),
        (Demand(ME, BOTH, {}, largest=8), 1.0),
        (Demand(ME, BOTH, {ME: 4.0}, largest=8), 1.0),
        (Demand(ME, BOTH, {OTHER: 1.0}, largest=8), 0.5),
        (Demand(ME, frozenset({ME}), {OTHER: 1.0, ME: 1.0}, largest=8), 0.5),
        (Demand(ME, BOTH, {THIRD: 2.0}, largest=8), 1 / 3),
        (Demand(ME, BOTH, {OTHER: 16.0}, largest=8), 1.0),
    ],
    ids=[
        "alone",
        "enough for all",
        "only I wait",
        "another waits",
        "both wait",
        "a third waits",
        "never fits",
    ],
)
def test_the_share_of_a_study(seen: Demand, share: float) -> None:
    assert Watch(seen).shares(0.0) == [share]


def test_who_leaves_free_what_he_could_take_waits_for_something_else() -> None:
    waits = Watch(Demand(ME, BOTH, {OTHER: 1.0}, free=2.0, largest=8))
    assert waits.shares(0.0, 5.0, 9.0, 11.0, 50.0) == [0.5, 0.5, 0.5, 1.0, 1.0]
    too_large = Watch(Demand(ME, BOTH, {OTHER: 4.0}, free=2.0, largest=8))
    assert too_large.shares(0.0, 50.0) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("seen", "gives_way"),
    [
        (Demand(ME, frozenset({ME}), {}, largest=1), False),
        (Demand(ME, frozenset({ME}), {OTHER: 1.0}, largest=1), True),
        (Demand(ME, frozenset(), {OTHER: 1.0}, free=1, largest=1), True),
        (Demand(ME, frozenset({OTHER}), {THIRD: 1.0}, largest=1), False),
        (Demand(ME, frozenset({ME}), {OTHER: 2.0}, largest=1), False),
    ],
    ids=["alone", "another waits", "who has yet to take it", "another has it", "never fits"],
)
def test_a_study_gives_way_until_another_has_its_turn(seen: Demand, gives_way: bool) -> None:
    assert Sharing(lambda: seen, lambda: 0.0).gives_way() == gives_way


def test_a_study_gives_way_once_to_who_does_not_take_it() -> None:
    watch = Watch(Demand(ME, frozenset(), {OTHER: 1.0}, free=1, largest=1))
    sharing = Sharing(watch.ask, lambda: watch.now)
    found = []
    for watch.now in (0.0, 9.0, 11.0):
        found.append(sharing.gives_way())
    watch.seen, watch.now = Demand(ME, frozenset({ME}), {OTHER: 1.0}, largest=1), 13.0
    assert [*found, sharing.gives_way()] == [True, True, False, False]
    assert sharing.share() == 0.5


def test_the_cluster_is_not_asked_at_every_turn() -> None:
    watch = Watch(Demand(ME))
    watch.shares(*(number / 100 for number in range(250)))
    assert watch.looks == 3


@pytest.mark.slow
@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:1", "127.0.0.1:99999", "ray://127.0.0.1:1"])
def test_an_address_that_leads_nowhere_is_told_in_a_line(tmp_path: Path, address: str) -> None:
    (tmp_path / "task.json").write_text("{}")
    command = [
        sys.executable,
        "-m",
        "tuner.cli",
        "run",
        str(tmp_path / "task.json"),
        "--results",
        str(tmp_path),
    ]
    env = {**os.environ, "RAY_ADDRESS": address}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"error: RAY_ADDRESS: no Ray cluster answers at {address!r}" in done.stderr
    assert "Traceback" not in done.stderr
