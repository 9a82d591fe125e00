"""What a study may use of its cluster, and which nodes it leaves out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from ray.tune.experiment import Trial

from tuner.capacity import LOST_IN_A_ROW, Capacity, Node, refusal
from tuner.engines import make_engine
from tuner.errors import InfrastructureLost
from tuner.failures import Cause
from tuner.recorder import Recorder
from tuner.results import ResultStore
from tuner.task import make_task

TASK = make_task({"base_runtime": "simulator"})

HEAD, A, B = Node("h", "head", 0.0, 8.0), Node("a", "node a", 4.0, 8.0), Node("b", "node b", 2.0, 8.0)


def capacity(*nodes: Node) -> Capacity:
    return Capacity(gpus=lambda config: int(str(config.get("tp-size", 1))), nodes=lambda: nodes)


def lose(of: Capacity, node: str, times: int = LOST_IN_A_ROW) -> list[str | None]:
    return [of.lost(node) for _ in range(times)]


def test_what_there_is() -> None:
    cluster = capacity(HEAD, A, B)
    assert (cluster.total, cluster.largest, cluster.at_once) == (6.0, 4.0, 6)
    assert capacity().total == capacity().largest == 0.0


def test_a_node_that_loses_three_in_a_row_is_left_out() -> None:
    cluster = capacity(HEAD, A, B)
    assert lose(cluster, "a") == [None, None, "node a"]
    assert cluster.left_out == {"a": "node a"}
    assert (cluster.total, cluster.largest) == (2.0, 2.0)
    assert cluster.avoided({}, ()) == ["a"]


def test_a_trial_that_comes_to_its_end_clears_its_node() -> None:
    cluster = capacity(HEAD, A, B)
    lose(cluster, "a", 2)
    cluster.served("a")
    assert lose(cluster, "a", 2) == [None, None]
    assert not cluster.left_out


def test_the_last_node_that_holds_trials_is_kept() -> None:
    cluster = capacity(HEAD, A)
    assert lose(cluster, "a", 9) == [None] * 9
    assert not cluster.left_out


def test_a_trial_avoids_where_it_was_lost_if_another_node_could_hold_it() -> None:
    cluster = capacity(HEAD, A, B)
    assert cluster.avoided({"tp-size": 2}, {"a"}) == ["a"]
    assert cluster.avoided({"tp-size": 4}, {"a"}) == []
    lose(cluster, "b")
    assert cluster.avoided({"tp-size": 2}, {"a"}) == ["b"]


def test_who_lacks_gpus_depends_on_the_nodes_that_are_usable_now() -> None:
    nodes = [HEAD, A, B]
    cluster = Capacity(gpus=lambda config: int(str(config["tp-size"])), nodes=lambda: nodes)
    engine = make_engine(TASK)
    four = {"tp-size": 4}
    assert not cluster.lacks(four) and refusal(engine, four, cluster) is None
    lose(cluster, "a")
    refused = refusal(engine, four, cluster)
    assert refused is not None and refused.cause is Cause.NO_SUCH_GPUS
    assert refused.detail == "needs 4 GPUs on one node; the largest node has 2"
    assert not cluster.lacks({"tp-size": 2})
    nodes.append(Node("c", "node c", 4.0, 8.0))
    assert refusal(engine, four, cluster) is None
    nodes.clear()
    assert not cluster.lacks(four), "which is awaited, as whatever else would run"


def test_on_cpus_only_what_needs_gpus_lacks_them() -> None:
    cluster = Capacity(lambda config: int(bool(config)), nodes=lambda: [HEAD], counts_gpus=False)
    assert not cluster.lacks({})
    assert cluster.lacks({"device": "cuda"})


def test_where_no_trial_needs_a_gpu_cpus_count() -> None:
    cluster = Capacity(lambda config: 0, lambda config: 64, lambda: (HEAD, A), counts_gpus=False)
    assert (cluster.total, cluster.needs({}), cluster.at_once) == (16.0, 8, 16)


def test_a_trial_is_given_the_cpus_of_the_nodes_that_there_are_now() -> None:
    nodes = [Node("a", "node a", 0.0, 8.0), Node("b", "node b", 0.0, 2.0)]
    cluster = Capacity(lambda config: 0, lambda config: 6, lambda: nodes, counts_gpus=False)
    assert cluster.cpus_for({}) == cluster.needs({}) == 6
    del nodes[0]
    assert cluster.cpus_for({}) == cluster.needs({}) == 2


def test_a_trial_is_given_no_more_cpus_than_a_node_with_its_gpus_has() -> None:
    nodes = [Node("h", "head", 0.0, 64.0), Node("a", "node a", 8.0, 6.0)]
    assert Capacity(lambda config: 8, lambda config: 9, lambda: nodes).cpus_for({}) == 6


@pytest.mark.parametrize("left", [[], [Node("h", "head", 0.0, 0.0)], [Node("b", "node b", 0.0, 2.0)]])
@pytest.mark.parametrize("counts_gpus", [True, False])
def test_a_study_waits_for_a_node_and_ends_where_none_comes(
    counts_gpus: bool, left: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [Node("a", "node a", 1.0, 8.0), *left]
    cluster = Capacity(lambda config: 1, lambda config: 6, lambda: nodes, counts_gpus=counts_gpus)
    told: list[str] = []
    recorder = Recorder(
        ResultStore("nowhere", "s"),
        TASK,
        make_engine(TASK),
        cluster,
        planned=lambda: 1,
        ended_early=lambda: "",
        watch=lambda progress: told.append(progress.trouble),
    )
    waits = SimpleNamespace(status=Trial.PENDING, config={"flags": {}, "cpus": cluster.cpus_for({})})
    recorder.on_step_begin(0, [cast(Trial, waits)])
    assert not any(told)
    del nodes[0]
    recorder.on_step_begin(1, [cast(Trial, waits)])
    assert told[-1].startswith("waiting for a node: a trial needs ")
    monkeypatch.setattr("tuner.recorder.PATIENCE_S", -1.0)
    with pytest.raises(InfrastructureLost, match="none came"):
        recorder.on_step_begin(2, [cast(Trial, waits)])
