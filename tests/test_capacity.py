"""What a study may use of its cluster, and which nodes it leaves out."""

from __future__ import annotations

from tuner.capacity import LOST_IN_A_ROW, Capacity, Node

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


def test_where_no_trial_needs_a_gpu_cpus_count() -> None:
    cluster = Capacity(lambda config: 0, lambda config: 64, lambda: (HEAD, A), counts_gpus=False)
    assert (cluster.total, cluster.needs({}), cluster.at_once) == (16.0, 8, 16)
