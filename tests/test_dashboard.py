"""What the Ray dashboard and Grafana show of a study."""

from __future__ import annotations

import itertools
import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray._private import worker

from tuner import run_study
from tuner.dashboard import LEVEL_METRICS, STUDY_METRICS, trial_name
from tuner.progress import StudyProgress
from tuner.task import make_task

GRAFANA = json.loads((Path(__file__).parent.parent / "docs" / "grafana.json").read_text())
SMALL = {
    "model": {"id_or_path": "llama-3.1-8b-instruct"},
    "base_runtime": "simulator",
    "parameters": {"tp-size": [1, 2], "schedule-policy": ["fcfs", "lpm"]},
    "optimization": {"max_iterations": 3, "confirm": 0},
    "benchmark": {
        "traffic_scenarios": ["D(50,20)"],
        "num_concurrency": [1, 2],
        "max_requests_per_iteration": 5,
    },
}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_metrics_and_logs_are_where_the_dashboard_looks(tmp_path: Path) -> None:
    names = {*STUDY_METRICS, *LEVEL_METRICS}
    pages: list[str] = []

    def scrape(progress: StudyProgress) -> None:
        if progress.finished and not pages:
            port = ray.nodes()[0]["MetricsExportPort"]
            limit = time.monotonic() + 60
            while True:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                    lines = [line for line in page.read().decode().splitlines() if 'study="shown"' in line]
                if {line.partition("{")[0].removeprefix("ray_") for line in lines} == names:
                    pages.extend(lines)
                    return
                assert time.monotonic() < limit, lines
                time.sleep(0.5)

    outcome = run_study(make_task(SMALL), results=tmp_path, study="shown", watch=scrape)
    states = {
        re.search('state="(.*?)"', line)[1]: float(line.split()[-1])  # type: ignore[index]
        for line in pages
        if line.startswith("ray_autotuner_trials{")
    }
    assert states.keys() == {"running", "waiting", "finished", "failed"} and states["finished"] == 1
    assert any('unit="s"' in line for line in pages if line.startswith("ray_autotuner_best_objective{"))

    folder = Path(worker.global_worker.node.get_logs_dir_path(), "autotuner-shown")  # type: ignore[union-attr]
    shown = {link.stem: link.read_text() for link in folder.iterdir()}
    trials = outcome.results.trials
    assert shown.keys() == {"study", *map(trial_name, trials["trial"], trials["config"])}
    assert "trial-00000_defaults" in shown
    assert "done" in shown["study"]
    assert all("SIMULAT" in text.upper() for name, text in shown.items() if name != "study")


flags = st.dictionaries(st.text(min_size=1, max_size=30), st.one_of(st.text(), st.integers(), st.none()))


@given(number=st.integers(0, 99_999), config=flags)
def test_a_trials_name_is_a_files_name(number: int, config: dict[str, Any]) -> None:
    name = trial_name(number, config)
    assert name.startswith(f"trial-{number:05d}_")
    assert len(name) <= 120 and re.fullmatch(r"[A-Za-z0-9._=+-]+", name)


def test_a_trials_name_says_what_it_tries() -> None:
    config = {"tp-size": 4, "quantization": None, "model": "/models/llama 3"}
    assert trial_name(7, config) == "trial-00007_tp-size=4_quantization=None_model=-models-llama-3"
    assert trial_name(7, {}, attempt=2) == "trial-00007-2_defaults"


def expressions() -> list[str]:
    return [target["expr"] for panel in GRAFANA["panels"] for target in panel["targets"]]


def test_grafana_draws_every_metric_and_no_other() -> None:
    drawn = {name for text in expressions() for name in re.findall(r"ray_(\w+)\{", text)}
    assert drawn == {*STUDY_METRICS, *LEVEL_METRICS}
    assert all('study=~"$study"' in text for text in expressions())


def test_grafanas_panels_have_units_and_a_place_each() -> None:
    panels = GRAFANA["panels"]
    for panel in panels:
        assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"  # asked for, not some machine's
    places = [panel["gridPos"] for panel in panels]
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({panel["id"] for panel in panels}) == len(panels)
