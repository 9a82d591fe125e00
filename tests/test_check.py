"""`tuner check`: what it says of a task before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuner.check import check_task
from tuner.cli import main
from tuner.errors import TaskError


def lines(tmp_path: Path, **task: Any) -> list[str]:
    path = tmp_path / "task.json"
    path.write_text(json.dumps(task))
    return list(check_task(path))


@pytest.mark.parametrize(
    "command", ["check", "run", "trial", "predict", "trial --virtual", "run --virtual", "check --engine vllm"]
)
def test_a_size_is_refused_with_file_key_and_value(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sizes.json"
    path.write_text('{"task_name": "other", "parameters": {"tensor-parallel-size": [0, 1]}}')
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), str(path)])
    assert ended.value.code == 2
    expected = f"error: {path}: parameters.tensor-parallel-size[0]: must be an integer from 1 to 4096, got 0"
    assert expected in capsys.readouterr().err


PARAMETERS = {
    "tp-size": [1, 2],
    "schedule-policy": ["lpm", "fcfs"],
    "max-running-requests": {"type": "integer", "low": 16, "high": 256, "step": 16},
    "schedule-conservativeness": {"type": "float", "low": 0.3, "high": 1.3},
}


@pytest.mark.parametrize(
    ("when", "name"),
    [
        ({"tp-size": 4}, "tp-size"),
        ({"tp-size": "1"}, "tp-size"),
        ({"schedule-policy": ["LPM", "dfs-weight"]}, "schedule-policy"),
        ({"max-running-requests": 20}, "max-running-requests"),
        ({"max-running-requests": {"low": 257}}, "max-running-requests"),
        ({"schedule-conservativeness": 1.4}, "schedule-conservativeness"),
        ({"schedule-conservativeness": {"high": 0.2}}, "schedule-conservativeness"),
        ({"tp-size": 1, "schedule-policy": "lmp"}, "schedule-policy"),
    ],
)
def test_a_constraint_that_never_applies_is_named(tmp_path: Path, when: dict[str, Any], name: str) -> None:
    applies = {"when": {"tp-size": 2}, "require": {"schedule-policy": "lpm"}}
    idle = {"when": when, "require": {"schedule-policy": "lpm"}}
    said = [
        line
        for line in lines(tmp_path, parameters=PARAMETERS, constraints=[applies, idle])
        if "Constr" in line
    ]
    assert said == [f"Constraint  constraints[1] never applies: no value of {name} is as its `when` says"]


@pytest.mark.parametrize(
    "when",
    [
        {"tp-size": 1},
        {"schedule-policy": ["dfs-weight", "fcfs"]},
        {"max-running-requests": {"low": 256}},
        {"max-running-requests": {"low": 17, "high": 32}},
        {"schedule-conservativeness": 0.5},
        {"schedule-conservativeness": {"low": 1.2}},
    ],
)
def test_one_that_may_apply_is_not(tmp_path: Path, when: dict[str, Any]) -> None:
    constraints = [{"when": when, "require": {"schedule-policy": "lpm"}}]
    if "schedule-policy" in when:
        constraints[0]["require"] = {"tp-size": 1}
    said = lines(tmp_path, parameters=PARAMETERS, constraints=constraints)
    assert not any("Constraint" in line for line in said)


def test_a_variable_that_is_not_set_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OF_MY_OWN", raising=False)
    engine = {"env": {"HF_TOKEN": "${OF_MY_OWN}", "OMP_NUM_THREADS": "4"}}
    [said] = [line for line in lines(tmp_path, engine=engine) if "Variable" in line]
    assert "OF_MY_OWN is not set here: engine.env.HF_TOKEN" in said
    monkeypatch.setenv("OF_MY_OWN", "hf_secret")
    assert not any("Variable" in line or "hf_secret" in line for line in lines(tmp_path, engine=engine))


def test_its_time_is_of_trials_of_all_sizes(tmp_path: Path) -> None:
    """Eight GPUs hold eight trials of one GPU, but of a space of 1 and 8 not even two at once."""

    def kept_busy(sizes: list[int]) -> str:
        load = {"max_time_per_iteration": 600}
        [line] = [
            line for line in lines(tmp_path, parameters={"tp-size": sizes}, benchmark=load) if "Time " in line
        ]
        return line

    assert "if 8 GPUs are kept busy" in kept_busy([1, 8]) and "if 8 GPUs" not in kept_busy([8])
    small, mixed = (
        int(kept_busy(sizes).split("one after another, ")[1].split(" min if")[0])
        for sizes in ([1, 2], [1, 8])
    )
    assert mixed == pytest.approx(3 * small, rel=0.1)  # 4.5 GPUs a trial, and 1.5


def test_of_several_objectives_no_measured_advice_is_given(tmp_path: Path) -> None:
    several = {"objective": ["minimize_ttft", "maximize_throughput"]}
    heads = [line.split()[0] for line in lines(tmp_path, optimization=several)]
    assert "Usual" in heads and "Advised" not in heads
    assert "Advised" in [line.split()[0] for line in lines(tmp_path)]


def _of_the_load(said: list[str]) -> list[str]:
    start = next(place for place, line in enumerate(said) if line.startswith("Load"))
    return [said[start], *(line for line in said[start + 1 : start + 2] if line.startswith("  "))]


def test_levels_of_too_few_requests_are_named(tmp_path: Path) -> None:
    def said(**load: Any) -> list[str]:
        return _of_the_load(lines(tmp_path, benchmark=load))

    first, second = said(num_concurrency=[8, 32, 64], max_requests_per_iteration=100)
    assert first.endswith("D(100,100) at 8, 32, 64 at a time")
    assert "fewer than 4 requests a stream at 32 at a time and more" in second
    assert len(said(num_concurrency=[8, 64])) == 1
    [line] = said(request_rate=[50], max_requests_per_iteration=10)
    assert line.endswith("D(100,100) at 50 requests/s")


def test_levels_that_last_longer_than_a_trial_may_are_named(tmp_path: Path) -> None:
    said = lines(tmp_path, benchmark={"num_concurrency": [4, 8], "max_time_per_iteration": 400})
    [line] = [line for line in said if "timeout_per_iteration" in line]
    assert "levels may send for 13 min, and a trial is ended after 10 min" in line
    assert not any("timeout_per_iteration" in line for line in lines(tmp_path))


def test_promises_are_shown_with_their_unit(tmp_path: Path) -> None:
    slo = {"ttft": {"p95": {"threshold": 500, "hard_fail": True}}, "tpot": {"threshold": 0.05}}
    assert [line for line in lines(tmp_path, slo=slo) if line.startswith("SLO")] == [
        "SLO         ttft p95 at most 500 s (hard)",
        "SLO         tpot mean at most 50 ms",
    ]


def test_a_model_that_the_simulator_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TaskError, match=r"task.json: model.id_or_path: the simulator does not know the model"
    ):
        lines(tmp_path, model={"id_or_path": "meta-llama/Llama-3.1-9B"})
