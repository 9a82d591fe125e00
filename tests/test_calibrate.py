"""`tuner calibrate`: constants fitted to a study's trials, errors before and after, and what uses them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tuner import run_study
from tuner.calibrate import LEAST, Calibration, calibrate
from tuner.cli import cli
from tuner.engines import make_engine
from tuner.engines.simulator.constants import DEFAULT, FITTED_NAMES, Constants, read_constants
from tuner.engines.simulator.fit import GUESS
from tuner.errors import UsageError
from tuner.evaluate import Step, evaluate
from tuner.experience import experience
from tuner.failures import TrialFailed
from tuner.forecast import forecast
from tuner.results import ResultStore
from tuner.rig import calibrated, rig, with_args
from tuner.rows import TrialInfo, record
from tuner.task import Task, make_task

TRUTH = replace(DEFAULT, memory=0.5, prefill_layer_s=3e-4, decode_s=6e-3, allreduce_s=2e-5)
SPACE = {"tp-size": [1, 2, 4], "chunked-prefill-size": [512, 8192], "schedule-policy": ["lpm", "fcfs"]}


def task_with(**sections: Any) -> Task:
    benchmark = {
        "traffic_scenarios": ["N(400,200)/(40,20)"],
        "max_requests_per_iteration": 48,
        **sections.pop("benchmark", {"num_concurrency": [1, 16]}),
    }
    return make_task(
        {
            "task_name": "made",
            "model": {"id_or_path": "llama-3.1-8b-instruct"},
            "parameters": SPACE,
            **sections,
            "benchmark": benchmark,
        }
    )


def as_text(constants: Constants) -> str:
    return json.dumps({name: getattr(constants, name) for name in FITTED_NAMES})


def made(root: Path, task: Task, constants: Constants, *, trials: int = 12, **about: Any) -> ResultStore:
    """A study whose trials ran on a simulator with other constants, and noise."""
    store = ResultStore(root, "made")
    said = {"study": "made", "engine": "simulator", "simulated": True, "seed": 0, **about}
    store.create({"task": task.model_dump(mode="json", exclude_unset=True), **said})
    hidden = with_args(task, {**task.engine.args, "calibration": as_text(constants)})
    for number, config in enumerate(list(task.space.grid())[:trials]):
        measured_by = rig(hidden, virtual=True, seed=number)
        steps: list[Step] = []
        for report in evaluate(
            hidden,
            config,
            engine=measured_by.engine,
            load=measured_by.load,
            clock=measured_by.clock,
            seed=0,
            gpu_ids=[],
            log_path=root / "log",
        ):
            steps += [] if report.step is None else [report.step]
        info = TrialInfo(number, "search", config, [], datetime.now(UTC), 1.0, "n", "")
        record(store, hidden, measured_by.engine, info, report, steps)
    return store


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    return made(tmp_path_factory.mktemp("results"), task_with(), TRUTH)


@pytest.fixture(scope="module")
def found(study: ResultStore) -> Calibration:
    return calibrate(study.read())


def test_the_error_falls_where_it_was_fitted_and_where_it_was_not(found: Calibration) -> None:
    assert (found.configurations, found.levels) == (12, 24)
    for name in ("e2e", "tpot", "ttft"):
        assert found.before[name] > 0.15, name
        assert found.after[name] < 0.03, name
        assert found.held_out[name] < 0.06, name
    assert found.helps


def test_constants_that_the_trials_tell_of_come_near_those_that_made_them(found: Calibration) -> None:
    for name in ("memory", "prefill_layer_s", "decode_s"):
        was, true, now = (getattr(of, name) for of in (DEFAULT, TRUTH, found.constants))
        assert abs(now / true - 1) < 0.5 * abs(was / true - 1), name
    assert found.constants.fp8_gemm == pytest.approx(DEFAULT.fp8_gemm)  # no trial was in fp8


@pytest.mark.parametrize(
    "load", [{"num_concurrency": [4], "max_time_per_iteration": 2}, {"request_rate": [6]}]
)
def test_levels_that_time_bounds_and_loads_at_a_rate_tell_as_well(load: Any, tmp_path: Path) -> None:
    told = calibrate(made(tmp_path, task_with(benchmark=load), TRUTH).read())
    assert told.helps
    assert told.held_out["e2e"] < 0.06
    assert told.before["e2e"] > 0.15


def test_the_command_writes_what_other_commands_take(study: ResultStore, tmp_path: Path) -> None:
    run = CliRunner()
    path = tmp_path / "h100.json"
    done = run.invoke(cli, ["calibrate", "made", "--results", study.root, "--output", str(path)])
    assert done.exit_code == 0, done.output
    assert "held out, 5 folds" in done.output and str(path) in done.output
    document = json.loads(path.read_text())
    assert document["gpu"] == "h100" and document["study"] == "made"
    assert read_constants(str(path)) == read_constants(json.dumps(document["constants"]))
    assert document["errors"]["held_out"]["e2e"] < document["errors"]["before"]["e2e"]

    task = tmp_path / "task.json"
    task.write_text(json.dumps(task_with().model_dump(mode="json", exclude_unset=True)))
    objectives = []
    for options in ([], ["--calibration", str(path)]):
        done = run.invoke(cli, ["predict", str(task), "--json", *options])
        assert done.exit_code == 0, done.output
        objectives.append(json.loads(done.output)["defaults"]["objective"])
    measured = study.read().trials["objective"][0]  # of tp-size 1 and chunks of 512
    assert objectives[0] < objectives[1] and abs(objectives[1] / measured - 1) < 0.1

    kept = run.invoke(cli, ["calibrate", "made", "--results", study.root, "--json"])
    assert json.loads(kept.output)["constants"].keys() == set(FITTED_NAMES)
    assert json.loads((Path(study.location) / "calibration.json").read_text()) == json.loads(kept.output)


def test_the_prior_of_a_real_engine_is_what_was_calibrated(found: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(found.document()))
    task = task_with(base_runtime="sglang", parameters={"tp-size": [1, 2]})
    losses = [
        [
            loss
            for _, loss in experience(
                task,
                make_engine(task, "simulator"),
                warm_start=[],
                simulate=True,
                root=tmp_path,
                seed=0,
                calibration=calibration,
            ).priors[0]
        ]
        for calibration in (None, path)
    ]
    assert all(calibrated_ > plain for plain, calibrated_ in zip(*losses, strict=True))


def test_a_real_engine_alone_is_not_calibrated(found: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(found.document()))
    with pytest.raises(UsageError, match="goes with --virtual or --prior simulator"):
        run_study(task_with(base_runtime="sglang"), results=tmp_path, calibration=path)


def test_no_nearer_is_not_written(tmp_path: Path) -> None:
    store = made(tmp_path, task_with(engine={"args": {"noise": 0}}), DEFAULT, trials=8)
    done = CliRunner().invoke(cli, ["calibrate", "made", "--results", str(tmp_path)])
    assert done.exit_code == 3, done.output
    assert "nothing is written" in done.output
    assert not (Path(store.location) / "calibration.json").exists()


def test_too_few_trials_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"has 3 configurations .* needs at least {LEAST}"):
        calibrate(made(tmp_path, task_with(), TRUTH, trials=3).read())


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        ({"speculative-algorithm": None}, 3),
        ({"dp-size": 1}, 3),
        ({"speculative-algorithm": "EAGLE"}, 0),
        ({"data-parallel-size": 2}, 0),
        ({"pipeline-parallel-size": 2}, 0),
    ],
)
def test_what_tells_of_something_else_is_left_out(flags: dict[str, Any], left: int, tmp_path: Path) -> None:
    results = made(tmp_path, task_with(), TRUTH, trials=3).read()
    results.trials["config"] = [{**config, **flags} for config in results.trials["config"]]
    with pytest.raises(UsageError, match=f"has {left} configurations"):
        calibrate(results)


@pytest.mark.parametrize(
    ("about", "task", "said"),
    [
        ({"engine": "vllm"}, {}, "is of vllm"),
        ({}, {"model": {"id_or_path": "nosuch/model"}}, "does not know the model nosuch/model"),
        ({"engine": "sglang"}, {}, "ran on GPUs that it does not name; give --gpu"),
    ],
)
def test_what_the_simulator_cannot_know_is_refused(
    about: dict[str, Any], task: dict[str, Any], said: str, tmp_path: Path
) -> None:
    store = made(tmp_path, task_with(**task), TRUTH, trials=0, **about)
    with pytest.raises(UsageError, match=said):
        calibrate(store.read())


def test_a_real_study_says_what_it_ran_on(study: ResultStore) -> None:
    results = study.read()
    results.about["engine"] = "sglang"
    results.trials["gpu_model"] = "NVIDIA H100 80GB HBM3"
    assert calibrate(results).gpu == "h100"
    results.trials["gpu_model"] = "A100-40G"  # as Ray names it
    with pytest.raises(UsageError, match="ran on A100-40G; give --gpu"):
        calibrate(results)
    results.trials["gpu_model"] = "NVIDIA H100 PCIe"
    with pytest.raises(UsageError, match="ran on NVIDIA H100 PCIe; give --gpu"):
        calibrate(results)
    assert calibrate(results, gpu="h200").gpu == "h200"


def test_trials_of_what_the_fit_does_not_tell_are_left_out(study: ResultStore) -> None:
    results = study.read()
    results.trials["config"] = [
        {**c, "dp-size": 2} if n < 7 else c for n, c in enumerate(results.trials["config"])
    ]
    with pytest.raises(UsageError, match="has 5 configurations"):
        calibrate(results)


# --- the file ------------------------------------------------------------------------------------------


def test_a_file_of_constants_is_read_in_part_or_whole(tmp_path: Path) -> None:
    assert read_constants("{}") == DEFAULT
    assert read_constants('{"memory": 0.5}').memory == 0.5
    assert read_constants(as_text(GUESS)) == replace(GUESS)
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"gpu": "h100", "constants": {"decode_s": 0.01}}))
    assert read_constants(str(path)).decode_s == 0.01


WRONG = [
    *("", "nosuch.json", "[]", "{", '{"memory": 0}', '{"memory": 1.5}', '{"memory": "0.5"}'),
    *('{"memory": true}', '{"decode_s": -1}', '{"decode_s": NaN}', '{"nosuch": 1}'),
]


def test_a_calibration_that_is_not_there_is_said_so_once(tmp_path: Path) -> None:
    path = tmp_path / "nofile"
    with pytest.raises(UsageError) as refused:
        forecast(task_with(), gpu=None, top=1, seed=0, calibration=path)
    assert str(refused.value) == f"--calibration: {path} cannot be read: No such file or directory"


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_calibration_is_refused_before_anything_starts(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read|no constants|must be|none of|Expecting"):
        read_constants(text)
    engine = make_engine(with_args(task_with(), {"calibration": text}))
    with pytest.raises(TrialFailed, match="calibration"):
        engine.check({})
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"constants": text}))
    with pytest.raises(UsageError, match="--calibration"):
        forecast(task_with(), gpu=None, top=1, seed=0, calibration=path)


def test_the_gpu_comes_with_the_file_unless_the_task_names_one(found: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**found.document(), "gpu": "a100"}))
    assert calibrated(task_with(), path).engine.args["gpu"] == "a100"
    assert calibrated(task_with(engine={"args": {"gpu": "l4"}}), path).engine.args["gpu"] == "l4"


def test_it_is_said_for_people_too(found: Calibration) -> None:
    text = "\n".join(found.lines())
    assert all(name in text for name in FITTED_NAMES)
    assert "12 configurations (24 load levels) of made: llama-3.1-8b-instruct on h100" in text
