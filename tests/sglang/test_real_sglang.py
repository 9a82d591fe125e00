"""The contract and two studies on a real SGLang, without a GPU by `make test-sglang`.

SGLANG_PYTHON names the interpreter that has SGLang; `shim/` stands for the GPU packages that it imports. With
SGLANG_DEVICE=cuda it runs on this machine's GPU, with its own packages. A start takes 10 to 60 seconds.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import processes
import pytest
from contracts.engine_contract import EngineContract
from tiny_llama import write_tiny_model

from tuner import run_study
from tuner.engines.server import call
from tuner.engines.sglang import SGLangEngine
from tuner.evaluate import evaluate
from tuner.failures import Cause, Stage, TrialFailed
from tuner.load import LOAD_GENERATORS
from tuner.stopping import EarlyStopping
from tuner.task import Task, make_task

pytestmark = pytest.mark.timeout(1800)
PYTHON = os.environ["SGLANG_PYTHON"]
SHIM = Path(__file__).parent / "shim"
START_S = 400.0
CONTEXT = 2048
if os.environ.get("SGLANG_DEVICE") == "cuda":
    GPUS = 1
    FLAGS = {"device": "cuda", "attention-backend": "triton", "sampling-backend": "pytorch"}
    ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}
else:
    GPUS = 2  # of the cluster, more than its trials ask for
    FLAGS = {"device": "cpu", "attention-backend": "torch_native"}
    ENVIRONMENT = {
        "SGLANG_USE_CPU_ENGINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(SHIM),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def module_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def data_folder(module_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One for all these tests: SGLang is asked once for its flags, which takes half as long as a start."""
    monkeypatch.setenv("XDG_DATA_HOME", str(module_data))
    return module_data / "autotuner"


def task_for(model: Path, **sections: Any) -> Task:
    sizes = {"load-format": "dummy", "context-length": CONTEXT, "max-total-tokens": 16384}
    fixed = {**FLAGS, **sizes, **sections.pop("args", {})}
    return make_task(
        {
            "base_runtime": "sglang",
            "model": {"id_or_path": str(model)},
            "parameters": {"schedule-policy": ["lpm", "fcfs"], "max-running-requests": [1, 4]},
            "engine": {"python": PYTHON, "args": fixed, "env": ENVIRONMENT, "start_timeout": START_S},
            "benchmark": {
                "model_name": f"served-{uuid4().hex}",
                "traffic_scenarios": ["D(64,16)"],
                "num_concurrency": [1, 4],
                "max_requests_per_iteration": 8,
            },
            **sections,
        }
    )


class TestSGLang(EngineContract):
    start_limit_s = START_S

    @pytest.fixture
    def engine(self, model: Path) -> SGLangEngine:
        return SGLangEngine(task_for(model, args={"max-total-tokens": None}))

    @pytest.fixture
    def good(self) -> Mapping[str, Any]:
        return {"schedule-policy": "fcfs", "max-running-requests": 4, "max-total-tokens": 8192}

    @pytest.fixture
    def hopeless(self) -> Mapping[str, Any]:
        return {"mem-fraction-static": 0.000001}

    def test_no_memory_is_told(self, engine: SGLangEngine, hopeless: Any, tmp_path: Path) -> None:
        with pytest.raises(TrialFailed) as failed, self._launch(engine, hopeless, tmp_path):
            pass
        assert failed.value.failure.cause is Cause.OUT_OF_MEMORY

    def test_it_says_what_it_runs_with(self, engine: SGLangEngine, good: Any, tmp_path: Path) -> None:
        with self._launch(engine, good, tmp_path) as server:
            info = server.info
            assert info.version == engine.version()
            assert info.kv_tokens == 8192
            assert info.effective_args["schedule-policy"] == "fcfs"
            assert info.effective_args["max-running-requests"] == 4
            assert info.effective_args["served-model-name"] == engine.task.served_model_name

    def test_cached_prefixes_are_forgotten(self, engine: SGLangEngine, good: Any, tmp_path: Path) -> None:
        body = {"model": "m", "prompt": "the same words " * 40, "max_tokens": 2}
        with self._launch(engine, {**good, "enable-cache-report": True}, tmp_path) as server:

            def cached() -> int:
                usage = call(f"{server.base_url}/v1/completions", body=body, timeout_s=60)["usage"]
                return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0))

            cached()
            assert cached() > 100
            server.flush_cache()
            assert cached() == 0

    def test_what_its_parser_refuses_is_refused_by_the_check(self, engine: SGLangEngine) -> None:
        engine.check({"tp-size": 2, "chunked-prefill-size": -1, "context-length": "4k"})
        for config in ({"schedule-policy": "nosuch"}, {"no-such-flag": 1}, {"tp-size": "two"}):
            with pytest.raises(TrialFailed) as refused:
                engine.check(config)
            assert refused.value.failure.cause is Cause.INVALID_FLAGS


def test_a_flag_that_only_the_start_refuses(model: Path, tmp_path: Path) -> None:
    engine = SGLangEngine(task_for(model))
    config = {"page-size": 7, "chunked-prefill-size": 100}
    engine.check(config)
    with (
        pytest.raises(TrialFailed, match="must be divisible by page_size") as failed,
        engine.launch(config, gpu_ids=[], log_path=tmp_path / "log", timeout_s=START_S),
    ):
        pass
    assert failed.value.failure.stage is Stage.START
    assert failed.value.failure.cause is Cause.INVALID_FLAGS


def test_a_study_ends_with_a_best(model: Path, tmp_path: Path) -> None:
    task = task_for(
        model,
        optimization={"objective": "minimize_ttft", "max_iterations": 4, "confirm": 0, "seed": 1},
    )
    outcome = run_study(task, num_gpus=GPUS, max_concurrent=1, results=tmp_path, study="real")
    trials = outcome.results.trials
    assert outcome.exit_code == 0
    assert trials["failure_cause"].isna().all() and not trials["simulated"].any()
    assert len(trials) == 4 and not trials["stopped_early"].any()
    assert (trials["engine_version"] == SGLangEngine(task).version()).all()
    assert (outcome.results.steps["requests_failed"] == 0).all()
    assert processes.gone(task.served_model_name)


def test_a_study_whose_trials_are_stopped_early_keeps_what_they_showed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EarlyStopping, "hopeless", lambda *_: True)  # five starts before it says so itself
    task = task_for(model, optimization={"max_iterations": 3, "confirm": 0, "seed": 1})
    outcome = run_study(task, num_gpus=GPUS, max_concurrent=1, results=tmp_path, study="stopped")
    trials = outcome.results.trials
    searched = trials["kind"] == "search"
    assert outcome.exit_code == 0 and trials["failure_cause"].isna().all()
    assert searched.sum() == 2 and (trials["stopped_early"] == searched).all()
    assert trials["levels_finished"].tolist() == [1 if stopped else 2 for stopped in searched]
    assert (outcome.results.steps["requests_ok"] == 8).all()
    assert processes.gone(task.served_model_name)


def test_a_trial_that_is_stopped_early_leaves_nothing(model: Path, tmp_path: Path) -> None:
    task = task_for(model)
    reports = evaluate(
        task,
        {"schedule-policy": "lpm"},
        engine=SGLangEngine(task),
        load=LOAD_GENERATORS["native"],
        seed=0,
        gpu_ids=[],
        log_path=tmp_path / "log",
    )
    first = next(reports)
    assert first.failure is None and first.step is not None
    assert first.step.metrics.requests_ok == 8
    tree = processes.with_marker(task.served_model_name)
    below = {pid: line for root in tree for pid, line in processes.below(root).items()}
    assert any("scheduler" in line for line in below.values())  # it renames itself, and has no marker
    reports.close()  # type: ignore[attr-defined]
    left = processes.command_lines()
    assert not {pid for pid, line in below.items() if left.get(pid) == line}


def test_a_scheduler_that_is_killed_is_noticed(model: Path, tmp_path: Path) -> None:
    engine = SGLangEngine(task_for(model))
    with engine.launch({}, gpu_ids=[], log_path=tmp_path / "log", timeout_s=START_S) as server:
        [scheduler] = [
            pid
            for root in processes.with_marker(engine.task.served_model_name)
            for pid, line in processes.below(root).items()
            if line.startswith("sglang::scheduler") and root != pid
        ][:1]
        os.kill(scheduler, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while server.alive() and time.monotonic() < deadline:
            time.sleep(0.2)
        with pytest.raises(TrialFailed, match="crashed with exit code -9") as failed:
            server.raise_if_failed()
    assert failed.value.failure.cause is Cause.CRASH
