"""What a study may use of its cluster, and which nodes it leaves out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.tune.experiment import Trial

from tuner.capacity import LOST_IN_A_ROW, Capacity, Node, capacity_for, gpu_range, refusal
from tuner.engines import make_engine
from tuner.engines.base import Config
from tuner.engines.simulator.adapter import SimulatorEngine
from tuner.errors import InfrastructureLost, NotEnoughGpus
from tuner.failures import Cause
from tuner.recorder import Recorder
from tuner.results import ResultStore
from tuner.search.queue import Pending, Queue
from tuner.suggestion import Suggestion
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


@pytest.mark.parametrize(("address", "advised"), [("", True), ("10.0.0.1:6379", False)])
def test_logical_gpus_are_advised_where_the_cluster_is_a_local_one(
    address: str, advised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(NotEnoughGpus, match="the largest node has 0") as refused:
        capacity_for(make_engine(TASK), TASK.space, lambda: [HEAD], lambda: 1.0, lambda: False)
    assert ("--num-gpus 1" in str(refused.value)) == advised


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


def test_as_many_at_once_as_fit_on_each_node() -> None:
    three = [Node("a", "node a", 3.0, 8.0), Node("b", "node b", 3.0, 8.0)]
    assert Capacity(nodes=lambda: three, fewest=2).at_once == 2
    few_cpus = [Node("h", "head", 0.0, 64.0), Node("a", "node a", 8.0, 3.0)]
    assert Capacity(nodes=lambda: few_cpus).at_once == 3


ATTENTION = {"tp-size": [8], "dp-size": [2, 4, 8]}


@pytest.mark.parametrize(
    ("engine", "task", "expected"),
    [
        ("sglang", {"parameters": {**ATTENTION, "enable-dp-attention": [True]}}, (8, 8)),
        ("sglang", {"parameters": {**ATTENTION, "enable-dp-attention": [True, False]}}, (8, 64)),
        ("sglang", {"parameters": {"tp-size": [1, 2], "device": ["cpu"]}}, (0, 0)),
        ("sglang", {"parameters": {"data-parallel-size": [4, 2], "tp-size": [1, 2]}}, (2, 8)),
        ("vllm", {"parameters": {"data-parallel-size": [8, 4], "max-num-seqs": [64, 128]}}, (4, 8)),
        ("vllm", {"parameters": {"tensor_parallel_size": [2, 4]}}, (2, 4)),
        ("vllm", {"parameters": {"x": [1, 2]}, "engine": {"args": {"tensor_parallel_size": 2}}}, (2, 2)),
        ("llamacpp", {"parameters": {"tp-size": [2, 4]}}, (0, 0)),
    ],
)
def test_the_fewest_and_the_most_gpus_are_the_engines_own_count(
    engine: str, task: dict[str, Any], expected: tuple[int, int]
) -> None:
    made = make_task({"model": {"id_or_path": "m"}, **task})
    assert gpu_range(made.space, make_engine(made, engine)) == expected


def test_what_the_constraints_forbid_needs_no_gpus() -> None:
    made = make_task(
        {
            "parameters": {"tp-size": [1, 8], "dp-size": [1, 8], "x": {"type": "float", "low": 0, "high": 1}},
            "constraints": [
                {"when": {"tp-size": 1}, "require": {"dp-size": 8}},
                {"when": {"tp-size": 8}, "require": {"dp-size": 1, "x": {"low": 0.5}}},
                {"when": {"x": {"low": 0}}, "require": {"tp-size": 8}},  # of what is not counted
            ],
        }
    )
    assert gpu_range(made.space, make_engine(made)) == (8, 8)


def test_of_very_many_sizes_the_ends_are_counted() -> None:
    sizes = {flag: {"type": "integer", "low": 2, "high": 4096} for flag in ("tp-size", "pp-size")}
    counted: list[Config] = []

    class Counting(SimulatorEngine):
        def gpus(self, config: Config) -> int:
            counted.append(config)
            return super().gpus(config)

    made = make_task({"parameters": {**sizes, "dp-size": [4, 1, 2], "enable-dp-attention": [True, False]}})
    assert gpu_range(made.space, Counting(made)) == (4, 4096 * 4096 * 4)
    assert len(counted) == 16


def test_a_study_begins_where_a_node_has_the_fewest() -> None:
    made = make_task({"parameters": {**ATTENTION, "enable-dp-attention": [True]}})
    engine, nodes = make_engine(made), [Node("a", "node a", 8.0, 64.0)]
    capacity = capacity_for(engine, made.space, lambda: nodes, lambda: 1.0, lambda: False)
    assert (capacity.fewest, capacity.at_once) == (8, 1)
    nodes[0] = B
    with pytest.raises(NotEnoughGpus, match="at least 8 GPU"):
        capacity_for(engine, made.space, lambda: nodes, lambda: 1.0, lambda: False)


class Served:
    """A queue that hands out trials of these sizes on two nodes of four GPUs each, and their sizes."""

    def __init__(self, *sizes: int, share: float = 1.0) -> None:
        self.gives_way = False
        self.nodes = [Node("a", "node a", 4.0, 8.0), Node("b", "node b", 4.0, 8.0)]
        self.queue = Queue(
            Capacity(
                lambda config: int(str(config["tp-size"])),
                nodes=lambda: self.nodes,
                share=lambda: share,
                gives_way=lambda: self.gives_way,
            )
        )
        self.due = [Pending(Suggestion(k, "search", {"tp-size": size})) for k, size in enumerate(sizes)]

    def next(self, node: str | None = None) -> int | None:
        """The size of the next trial, which is placed on `node` if that is given; None where it waits."""
        pending = self.queue.next(lambda: self.due.pop(0) if self.due else None)
        if pending is None:
            return None
        name = str(pending.suggestion.number)
        self.queue.starts(name, pending)
        if node:
            self.queue.placed(name, node)
        return self.queue.capacity.gpus(pending.suggestion.config)


def test_a_trial_is_handed_out_where_a_single_node_has_room() -> None:
    served = Served(2, 2, 4, 2, 2, 1)
    assert [served.next("a"), served.next("b")] == [2, 2]
    assert [served.next("b"), served.next("a")] == [2, 2], "they overtake the one of four"
    assert served.next() is None
    served.queue.ended("0")
    assert served.next("a") == 1
    for ended in ("1", "3"):
        served.queue.ended(ended)
    assert served.next("b") == 4


def test_a_trial_that_is_not_placed_yet_counts_where_it_fits_best() -> None:
    served = Served(1, 2, 3, 4, 2)
    assert [served.next(), served.next()] == [1, 2], "on one node"
    assert served.next() == 3
    assert served.next() is None, "neither four nor two"
    served = Served(2, 2, 4)
    assert [served.next(), served.next(), served.next()] == [2, 2, 4]
    served.queue.placed("0", "a")
    served.queue.placed("1", "b")  # so that the third waits for one of the two
    served.due.append(Pending(Suggestion(3, "search", {"tp-size": 1})))
    assert served.next() is None, "that may become free"
    served.queue.ended("0")
    assert served.next() == 1


def test_another_attempt_at_what_a_node_lost_is_not_overtaken_by_what_it_might_lose_next() -> None:
    served = Served(2, 2, 2, 2, 2)
    assert [served.next(node) for node in "aabb"] == [2, 2, 2, 2]
    served.queue.lost("0")
    assert served.next() == 2
    assert [each.suggestion.attempt for each in served.queue if each.suggestion.number == 0] == [2]
    assert served.next() is None


def test_a_trial_that_fits_on_no_node_any_more_keeps_nobody_from_running() -> None:
    served = Served(3, 4, 2)
    assert [served.next("a"), served.next()] == [3, 4]
    served.nodes[1:] = [Node("c", "node c", 3.0, 8.0)]
    del served.nodes[0]
    assert served.next("c") == 2


def test_the_share_of_a_study_bounds_what_it_is_handed_out_on_all_nodes() -> None:
    served = Served(2, 2, 2, share=0.5)
    assert [served.next("a"), served.next("b"), served.next()] == [2, 2, None]


def test_what_is_more_than_the_share_takes_turns_with_others() -> None:
    served = Served(4, 4, share=0.25)
    assert served.next("a") == 4, "though it is more than its share, for nobody holds anything"
    served.gives_way = True
    assert served.next() is None and served.queue.running
    served.queue.ended("0")
    assert served.next() is None and not served.queue.running and served.queue, "it is another's turn"
    served.gives_way = False
    assert served.next("a") == 4


def test_within_its_share_a_study_goes_on_whoever_waits() -> None:
    served = Served(2, 2, share=0.25)
    served.gives_way = True
    assert served.next("a") == 2
    served.queue.ended("0")
    assert served.next("a") == 2


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
