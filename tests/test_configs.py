"""Every task file that comes with the project runs, cut short, on the simulator."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner import load_task, run_study
from tuner.task import Task

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

FOLDER = Path(__file__).parent.parent / "configs"
# llamacpp.json has flags that the simulator does not know: test_llamacpp.py runs it on llama.cpp itself.
CONFIGS = sorted(set(FOLDER.iterdir()) - {FOLDER / "llamacpp.json"})


def cut_short(task: Task) -> Task:
    """`task` with three trials of a few requests."""
    return task.model_copy(
        update={
            "optimization": task.optimization.model_copy(update={"max_iterations": 3, "confirm": 0}),
            "benchmark": task.benchmark.model_copy(update={"max_requests_per_iteration": 5}),
        }
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    task = cut_short(load_task(path))
    outcome = run_study(task, engine="simulator", results=tmp_path)
    levels = len(task.levels(0))
    assert len(outcome.results.trials) == 3
    finished = outcome.results.trials["failure_cause"].isna()
    assert finished.any()
    assert (outcome.results.trials["levels_finished"][finished] == levels).all()
