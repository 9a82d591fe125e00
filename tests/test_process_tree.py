"""Through Ray Tune, however a trial ends: nothing is left of an engine that does all to stay.

The engine is a plug-in (`plugins/hostile_engine.py`), so it is also found by its entry point on the way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import processes
import pytest

from tuner import registry, run_study
from tuner.errors import InfrastructureLost
from tuner.results import ResultStore
from tuner.task import Task, make_task

PLUGINS = Path(__file__).parent / "plugins"
TREE = 6  # processes of one engine: watchdog, server, a session, a daemon, a child of each
SUGGESTED = {
    **{"number": 0, "kind": "search", "flags": {}, "attempt": 1},
    **{"expected_gain": None, "cpus": 1, "avoid": []},
}

pytestmark = [pytest.mark.ray, pytest.mark.slow]
on_the_cluster = pytest.mark.usefixtures("ray_cluster", "plug_in")


@pytest.fixture
def marker() -> Iterator[str]:
    """The served model's name, which is in every process's command line; none may be left."""
    word = f"served-{uuid4().hex}"
    yield word
    left = processes.with_marker(word)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plug-ins in this process; the cluster's workers have them by PYTHONPATH."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    registry.engines.cache_clear()
    yield
    registry.engines.cache_clear()


def document(marker: str, *, level_s: float = 1.0, env: dict[str, str] | None = None) -> dict[str, Any]:
    """A study of one trial with two load levels of `level_s` seconds."""
    return {
        "base_runtime": "hostile",
        "model": {"id_or_path": "llama-3.1-8b-instruct"},
        "engine": {"env": env or {}},
        "parameters": {"schedule-policy": ["lpm", "fcfs"]},
        "optimization": {"max_iterations": 1, "confirm": 0},
        "benchmark": {
            "model_name": marker,
            "traffic_scenarios": ["D(64,16)"],
            "num_concurrency": [1, 2],
            "max_time_per_iteration": level_s,
            "max_requests_per_iteration": 10_000,
        },
    }


def task_for(marker: str, **options: Any) -> Task:
    return make_task(document(marker, **options))


def whole_tree(marker: str) -> set[int]:
    """Every process of a running engine, once its unruly relatives are all there."""
    deadline = time.monotonic() + 120
    while len(found := set(processes.with_marker(marker))) < TREE:
        assert time.monotonic() < deadline, f"only {len(found)} processes of the engine came"
        time.sleep(0.02)
    return found


def all_gone(pids: set[int], marker: str) -> bool:
    """Whether these processes end within a generous limit; others with the marker may come and go."""
    deadline = time.monotonic() + 60
    while pids & set(processes.with_marker(marker)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@on_the_cluster
def test_after_a_normal_end(marker: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(whole_tree, marker)
        outcome = run_study(task_for(marker), results=tmp_path)
        assert not processes.with_marker(marker)
    assert seen.result()
    assert outcome.exit_code == 0
    assert outcome.results.about["engine"] == "hostile"


@on_the_cluster
def test_after_an_early_stop(marker: str, tmp_path: Path) -> None:
    from ray import tune

    from tuner.trial import TrialContext, trainable

    context = TrialContext("early", task_for(marker, level_s=2.0), "hostile", 0)
    tuner = tune.Tuner(
        trainable(context),
        param_space=SUGGESTED,
        run_config=tune.RunConfig(
            name="early", storage_path=str(tmp_path), verbose=0, stop={"training_iteration": 2}
        ),
    )
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(whole_tree, marker)
        [stopped] = tuner.fit()
    assert seen.result()
    assert stopped.metrics is not None and not stopped.metrics["report"].done
    assert processes.gone(marker)


@on_the_cluster
def test_after_an_exception_in_the_trial(marker: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(whole_tree, marker)
        task = task_for(marker, env={"HOSTILE_ENGINE_RAISES": "1"})
        with pytest.raises(InfrastructureLost, match="ZeroDivisionError: an exception of the adapter itself"):
            run_study(task, results=tmp_path, study="s")
        assert not processes.with_marker(marker)
    assert seen.result()
    trials = ResultStore(tmp_path, "s").read().trials
    assert list(trials["failure_cause"]) == ["internal error"] * 3
    assert list(trials["attempts"]) == [3] * 3
    assert "hostile_engine.py" in trials["failure_evidence"].iloc[0]


@on_the_cluster
def test_after_the_actor_is_killed(marker: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(_kill_the_actor, marker)
        trials = run_study(task_for(marker, level_s=3.0), results=tmp_path).results.trials
        assert not processes.with_marker(marker)
    assert gone.result()
    assert list(trials["trial"]) == [0]
    assert trials["failure_cause"].isna().all()  # it ran again
    assert list(trials["attempts"]) == [2]
    assert "node lost" in trials["lost"].iloc[0]


def _kill_the_actor(marker: str) -> bool:
    """SIGKILLs the process of the trial; whether the engine that it had started is gone then."""
    tree = whole_tree(marker)
    [actor] = processes.at_the_other_end(tree)  # of the pipe that its watchdog listens to
    os.kill(actor, signal.SIGKILL)
    return all_gone(tree, marker)


@on_the_cluster
def test_after_the_driver_falls_silent(marker: str) -> None:
    """As one does that a cut network parts from the trial's node, which Ray notices minutes later."""
    import ray

    from tuner.trial import TrialContext, trainable

    task = task_for(marker, level_s=0.5)
    context = TrialContext("silent", task, "hostile", 0, abandoned_s=1.0)
    actor = ray.remote(trainable(context)).remote(config=SUGGESTED)
    for _ in range(2):  # where it runs, and its first load level
        result = ray.get(actor.train.remote(), timeout=120)
    assert not result["report"].done
    assert processes.gone(marker)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.train.remote(), timeout=60)


@pytest.mark.parametrize("whose", ["driver", "node"])
def test_after_its_driver_or_its_node_is_killed(whose: str, marker: str, tmp_path: Path) -> None:
    """On a cluster of its own; a node is its raylet, whose end Ray's workers notice after some 15 s."""
    path = tmp_path / "task.json"
    path.write_text(json.dumps(document(marker, level_s=60.0)))
    command = [sys.executable, "-m", "tuner.cli", "run", str(path), "--results", str(tmp_path)]
    env = {**os.environ, "RAY_ADDRESS": "", "PYTHONPATH": str(PLUGINS)}
    with (tmp_path / "out").open("w") as out:
        study = subprocess.Popen(command, stdout=out, stderr=out, env=env)
    try:
        tree = whole_tree(marker)
        victim = study.pid
        if whose == "node":
            family = processes.below(study.pid).items()
            [victim] = [pid for pid, line in family if line.partition(" ")[0].endswith("/raylet")]
        os.kill(victim, signal.SIGKILL)
        assert all_gone(tree, marker)
    finally:
        study.kill()
        study.wait()
    assert processes.gone(marker)
