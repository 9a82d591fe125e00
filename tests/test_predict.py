"""`tuner predict`: what the simulator expects of a space, and that it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tuner.cli import cli
from tuner.objective import Score
from tuner.predict import predict as predict_one
from tuner.task import make_task

TASK: dict[str, Any] = {
    "task_name": "predicted",
    "model": {"id_or_path": "llama-3.1-8b-instruct"},
    "base_runtime": "sglang",
    "parameters": {"tp-size": [1, 2], "mem-fraction-static": [0.05, 0.85]},
    "benchmark": {"max_requests_per_iteration": 8},
}


def predict(folder: Path, *options: str, **changed: Any) -> tuple[int, str]:
    path = folder / "task.json"
    path.write_text(json.dumps({**TASK, **changed}), encoding="utf-8")
    result = CliRunner().invoke(cli, ["predict", str(path), *options])
    return result.exit_code, result.output


def test_it_says_that_it_predicts(tmp_path: Path) -> None:
    code, text = predict(tmp_path)
    assert code == 0
    assert text.startswith("PREDICTED")
    assert "not measured" in text
    assert "engine's defaults" in text
    assert "Predicted gain" in text


def test_penalties_are_no_gain(tmp_path: Path) -> None:
    code, text = predict(
        tmp_path, slo={"ttft": {"threshold": 1e-6}}, optimization={"objective": "minimize_tpot"}
    )
    assert code == 0
    [line] = [line for line in text.splitlines() if line.startswith("Predicted gain")]
    assert line.endswith("; the best would break the promises, the defaults break them")
    assert abs(float(line.partition(" %")[0].rpartition(" ")[2].replace("−", "-"))) < 100


def test_json_has_the_best_first_and_leaves_out_what_would_not_start(tmp_path: Path) -> None:
    code, text = predict(tmp_path, "--json", "--top", "3")
    document = json.loads(text)
    assert code == 0
    assert document["predicted"] is True
    assert document["evaluated"] == 4
    assert [one["config"]["mem-fraction-static"] for one in document["best"]] == [0.85, 0.85]
    assert document["best"][0]["config"]["tp-size"] == 2
    assert document["gain"] > 0


def test_the_same_seed_predicts_the_same(tmp_path: Path) -> None:
    assert predict(tmp_path, "--json", "--seed", "3") == predict(tmp_path, "--json", "--seed", "3")


def test_of_several_objectives_the_front_is_told_from_its_knee_on(tmp_path: Path) -> None:
    changed: dict[str, Any] = {
        "parameters": {"tp-size": [1, 2, 4], "mem-fraction-static": [0.05, 0.85]},
        "optimization": {"objective": ["minimize_ttft", "maximize_throughput"]},
    }
    document = json.loads(predict(tmp_path, "--json", "--top", "9", **changed)[1])
    found = [
        tuple(one["objectives"][name]["objective"] for name in ("minimize_ttft", "maximize_throughput"))
        for one in document["best"]
    ]
    assert len(set(found)) >= 2 and document["evaluated"] == 6
    for ttft, rate in found:
        assert not any(other[0] < ttft and other[1] > rate for other in found)
    code, text = predict(tmp_path, "--top", "9", **changed)
    assert code == 0
    assert "minimize_ttft (ms), maximize_throughput (tok/s/GPU) of 6 configurations, the Pareto front" in text
    rows = [line for line in text.splitlines() if "tp-size" in line]
    assert len(rows) == len(found)
    assert [float(row.split()[1].replace(",", "")) for row in rows] == pytest.approx(
        [rate for _, rate in found], rel=0.01
    )
    [gain] = [line for line in text.splitlines() if line.startswith("Predicted gain")]
    assert "minimize_ttft" in gain and "maximize_throughput" in gain


@pytest.mark.parametrize("flag", ["attention-backend", "no-such-flag"])
def test_flags_that_are_not_modelled_are_named(tmp_path: Path, flag: str) -> None:
    values = ["fa3", "triton"] if flag == "attention-backend" else [1, 2]
    code, text = predict(tmp_path, "--json", parameters={"tp-size": [1], flag: values})
    document = json.loads(text)
    assert code == 0
    assert document["without_effect"] == [flag]
    assert len({one["objective"] for one in document["best"]}) == 1


def test_a_better_gpu_is_predicted_better(tmp_path: Path) -> None:
    latencies = [
        json.loads(predict(tmp_path, "--json", "--gpu", gpu)[1])["best"][0]["objective"]
        for gpu in ("h200", "h100", "l40s")
    ]
    assert latencies == sorted(latencies)


def test_nothing_that_would_start_is_exit_code_4(tmp_path: Path) -> None:
    code, text = predict(tmp_path, parameters={"mem-fraction-static": [0.01]})
    assert "None of them would run: " in text and text.split("would run: ")[1].strip()
    assert code == 4
    assert "PREDICTED" in text


@pytest.mark.parametrize(
    "changed",
    [{"base_runtime": "vllm"}, {"model": {"id_or_path": "nosuch/model"}}],
)
def test_what_it_does_not_know_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    assert predict(tmp_path, **changed)[0] not in (0, 4)


def test_an_unknown_gpu_is_refused(tmp_path: Path) -> None:
    assert predict(tmp_path, "--gpu", "nosuch")[0] not in (0, 4)


def test_the_highest_load_is_looked_for_in_virtual_time_as_well() -> None:
    def predicted(**find: str) -> Score:
        load = {"traffic_scenarios": ["D(200,50)", "D(900,50)"], "num_concurrency": [2, 128]}
        more: dict[str, Any] = {
            "benchmark": {**load, "max_requests_per_iteration": 200, **find},
            "optimization": {"objective": "maximize_throughput"},
            "slo": {"tpot": {"threshold": 0.008}},
        }
        return predict_one(make_task({**TASK, **more}), {}, seed=0).score

    listed, searched = predicted(), predicted(find="max_load")
    assert not listed.slo.met  # at 128 streams
    assert searched.slo.met and searched.objective is not None and listed.objective is not None
    assert 0 < searched.objective < listed.objective
