"""Whatever an engine does, its trial is a recorded result, it is gone, and the study goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import processes
import pytest

from tuner import registry, run_study
from tuner.engines.process import LOG_BYTES
from tuner.task import make_task

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

PLUGINS = Path(__file__).parent / "plugins"

# By fault: at which stage it ends a trial, and for which cause; nothing where the trial finishes.
OUTCOMES = {
    "none": (None, None),
    "hangs at start": ("start", "start timeout"),
    "eats memory": ("start", "out of memory"),
    "serves rubbish": ("start", "crash"),
    "hangs under load": ("load", "hang"),
    "dies under load": ("load", "crash"),
    "floods its log": (None, None),
    "leaves children": (None, None),
}


@pytest.fixture(autouse=True)
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plug-ins in this process; the cluster's workers have them by PYTHONPATH."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    registry.engines.cache_clear()
    yield
    registry.engines.cache_clear()


def test_a_study_of_every_fault(tmp_path: Path) -> None:
    marker = f"served-{uuid4().hex}"
    task = make_task(
        {
            "model": {"id_or_path": "llama-3.1-8b-instruct"},
            "base_runtime": "faulty",
            "engine": {"start_timeout": 30, "hang_timeout": 3},
            "parameters": {"fault": list(OUTCOMES)},
            "optimization": {"strategy": "grid", "baseline": False, "confirm": 0},
            "benchmark": {
                "model_name": marker,
                "traffic_scenarios": ["D(64,64)"],
                "num_concurrency": [2],
                "max_time_per_iteration": 6.0,
                "max_requests_per_iteration": 10_000,
            },
        }
    )
    trials = run_study(task, results=tmp_path, num_gpus=None, max_concurrent=2).results.trials
    assert not processes.with_marker(marker)
    assert (trials["attempts"] == 1).all(), "none of it is taken for the machine's fault"
    seen = {
        row["config"]["fault"]: (row["failure_stage"], row["failure_cause"])
        for row in trials.astype(object).where(trials.notna(), None).to_dict("records")
    }
    assert seen == OUTCOMES
    logs = {row["config"]["fault"]: Path(row["log_path"]) for row in trials.to_dict("records")}
    flooded = logs["floods its log"].read_bytes()
    assert len(flooded) < 1.5 * LOG_BYTES
    assert b"bytes of log were cut out here" in flooded
