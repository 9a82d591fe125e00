"""llama.cpp itself, on a tiny random model: the contract, its flags, its CPUs, its failures, a study."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import pytest
from contracts.engine_contract import EngineContract
from tiny_gguf import CONTEXT, write_tiny_gguf

from tuner import load_task, run_study
from tuner.analysis import summary
from tuner.check import check_task
from tuner.engines.base import Engine
from tuner.engines.llamacpp.__main__ import memory_mib
from tuner.engines.llamacpp.adapter import SIGNS, LlamaCppEngine, flag_arguments
from tuner.engines.server import call, diagnose
from tuner.errors import EngineUnavailable
from tuner.evaluate import evaluate
from tuner.failures import Cause, Stage, TrialFailed
from tuner.load import LOAD_GENERATORS
from tuner.task import Task, make_task

LOGS = Path(__file__).parent / "data" / "logs"
CONFIG = Path(__file__).parent.parent / "configs" / "llamacpp.json"
PROMPT = " ".join(["able also area away back ball band bank"] * 4)


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


def task(model: Path | str = "model.gguf", **sections: Any) -> Task:
    return make_task(
        {
            "model": {"id_or_path": str(model)},
            "base_runtime": "llamacpp",
            "parameters": {"parallel": [1, 2]},
            **sections,
            "benchmark": {"model_name": f"served-{uuid4().hex}", **sections.get("benchmark", {})},
        }
    )


def engine(model: Path | str = "model.gguf", **sections: Any) -> LlamaCppEngine:
    return LlamaCppEngine(task(model, **sections))


def cached_tokens(server: Any) -> int:
    """How much of the prompt the server had kept."""
    body = {"model": server.model, "prompt": PROMPT, "max_tokens": 1}
    answer = call(f"{server.base_url}/v1/completions", body=body, timeout_s=60)
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


class TestLlamaCpp(EngineContract):
    @pytest.fixture
    def engine(self, gguf: Path) -> Engine:
        return engine(gguf)

    @pytest.fixture
    def good(self) -> Mapping[str, Any]:
        return {"threads": 1}  # tests run beside others: two threads that wait for each other crawl

    @pytest.fixture
    def hopeless(self) -> Mapping[str, Any]:
        return {"ctx-size": 4_000_000, "memory-limit": 1024}

    @pytest.fixture
    def marker(self, engine: Engine) -> str:
        command = engine.launch_command({})
        return command[command.index("--alias") + 1]

    def test_it_says_what_it_serves(self, engine: Engine, tmp_path: Path) -> None:
        config = {"threads": 1, "parallel": 2, "ctx-size": 2048, "cache-prompt": False}
        with self._launch(engine, config, tmp_path) as server:
            info = server.info
        assert info.version == engine.version()
        assert info.version in (tmp_path / "engine.log").read_text()
        assert info.kv_tokens == info.effective_args["ctx-size"] == 2048
        asked = {**config, "batch-size": 2048, "flash-attn": "auto", "alias": server.model}
        assert asked.items() <= info.effective_args.items()

    def test_its_defaults_are_those_of_llama_server(self, engine: Engine, tmp_path: Path) -> None:
        with self._launch(engine, {"threads": 1}, tmp_path) as server:
            assert server.info.kv_tokens == CONTEXT
            assert server.info.effective_args["parallel"] == 4
            assert server.info.effective_args["kv-unified"] is True

    @pytest.mark.parametrize(
        "config",
        [
            {"cache-type-k": "q8_0", "cache-type-v": "q8_0", "flash-attn": "on"},
            {"flash-attn": "off", "kv-unified": True, "parallel": 3, "cache-ram": 0},
            {"batch-size": 64, "ubatch-size": 32, "cont-batching": False, "repack": False},
            {"threads-batch": 1, "threads-http": 2, "poll": 0, "cache-reuse": 32, "n-gpu-layers": 0},
        ],
    )
    def test_every_flag_is_one_that_llama_cpp_takes(
        self, engine: Engine, config: dict[str, Any], tmp_path: Path
    ) -> None:
        engine.check(config)
        with self._launch(engine, {"threads": 1, **config}, tmp_path) as server:
            assert config.items() <= server.info.effective_args.items()
            assert cached_tokens(server) == 0

    def test_what_it_has_cached_can_be_forgotten(self, engine: Engine, tmp_path: Path) -> None:
        with self._launch(engine, {"threads": 1, "cache-ram": 0}, tmp_path) as server:
            assert cached_tokens(server) == 0
            assert cached_tokens(server) > 0
            server.flush_cache()
            assert cached_tokens(server) == 0

    def test_without_a_prompt_cache_nothing_is_cached(self, engine: Engine, tmp_path: Path) -> None:
        with self._launch(engine, {"threads": 1, "cache-prompt": False}, tmp_path) as server:
            assert [cached_tokens(server), cached_tokens(server)] == [0, 0]

    @pytest.mark.parametrize(
        ("config", "cause"),
        [
            ({"ctx-size": 400_000_000, "memory-limit": 1024}, Cause.OUT_OF_MEMORY),
            ({"parallel": 100_000, "memory-limit": 1024}, Cause.OUT_OF_MEMORY),
            ({"cache-type-v": "q8_0", "flash-attn": "off"}, Cause.INVALID_FLAGS),
        ],
    )
    def test_it_fails_for_a_cause(
        self, engine: Engine, config: dict[str, Any], cause: Cause, tmp_path: Path
    ) -> None:
        engine.check(config)
        with pytest.raises(TrialFailed) as failed, self._launch(engine, config, tmp_path):
            pass
        assert (failed.value.failure.stage, failed.value.failure.cause) == (Stage.START, cause)

    def test_a_model_that_is_cut_off_or_absent_is_told(self, gguf: Path, tmp_path: Path) -> None:
        half = tmp_path / "half.gguf"
        half.write_bytes(gguf.read_bytes()[:3_000_000])
        for model, detail in ((half, "corrupted or incomplete"), (tmp_path / "none.gguf", "No such file")):
            with pytest.raises(TrialFailed, match=detail) as failed:
                self._launch(engine(model), {}, tmp_path).__enter__()
            assert failed.value.failure.cause is Cause.MODEL_NOT_FOUND
            assert failed.value.failure.exit_code == 1


def test_every_token_that_is_asked_for_is_served_and_counted(gguf: Path, tmp_path: Path) -> None:
    """The model would end an answer by itself now and then; and its connections are kept alive."""
    load = {"traffic_scenarios": ["D(40,12)"], "num_concurrency": [1, 4], "max_requests_per_iteration": 12}
    served = task(gguf, benchmark=load)
    reports = list(
        evaluate(
            served,
            {"threads": 1},
            engine=LlamaCppEngine(served),
            load=LOAD_GENERATORS["native"],
            seed=1,
            gpu_ids=[],
            log_path=tmp_path / "engine.log",
        )
    )
    assert reports[-1].failure is None and reports[-1].done
    steps = [report.step for report in reports if report.step is not None]
    for step in {id(step): step for step in steps}.values():
        assert step.metrics.requests_ok == 12 and not step.metrics.errors
        assert {record.output_tokens for record in step.load.records} == {12}
        assert {record.input_tokens for record in step.load.records} == {
            40 + 3
        }  # the first word has no blank
        assert step.metrics.gpus == 1  # rates are the whole server's


# --- the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "argv"),
    [
        ({}, []),
        ({"threads": 2}, ["--threads", "2"]),
        ({"cache-prompt": True}, ["--cache-prompt"]),
        ({"cache-prompt": False}, ["--no-cache-prompt"]),
        ({"ctx-size": None}, []),
        ({"flash-attn": "on", "cache-reuse": 0}, ["--flash-attn", "on", "--cache-reuse", "0"]),
    ],
)
def test_flags_as_arguments(config: dict[str, Any], argv: list[str]) -> None:
    assert flag_arguments(config) == argv


def test_the_launch_command_is_llama_servers_without_what_it_does_not_know() -> None:
    llamacpp = engine(
        engine={"args": {"ctx-size": 4096, "memory-limit": 9000}, "python": "/opt/bin/python"},
        benchmark={"model_name": "tiny"},
    )
    assert llamacpp.launch_command({"parallel": 4, "cache-prompt": False}) == [
        *("llama-server", "--model", "model.gguf", "--alias", "tiny", "--host", "0.0.0.0", "--port", "30000"),
        *("--ctx-size", "4096", "--parallel", "4", "--no-cache-prompt"),
    ]


@pytest.mark.parametrize(
    ("config", "detail"),
    [
        ({"no-such-flag": 1}, "unrecognized arguments"),
        ({"thread": 1}, "unrecognized arguments"),  # no abbreviations: another version may not know them
        ({"threads": 0}, "0 is not between 1 and 512"),
        ({"threads": 100_000}, "is not between 1 and 512"),  # llama.cpp: a segmentation fault
        ({"batch-size": 0}, "is not between"),  # llama.cpp: GGML_ASSERT
        ({"ctx-size": 4_000_000_000}, "is not between"),
        ({"parallel": "four"}, "invalid number value: 'four'"),
        ({"flash-attn": "maybe"}, "invalid choice: 'maybe'"),
        ({"flash-attn": True}, "expected one argument"),
        ({"cache-type-k": "q2"}, "invalid choice"),
    ],
)
def test_bad_flags_are_refused_before_anything_starts(config: dict[str, Any], detail: str) -> None:
    with pytest.raises(TrialFailed, match=detail) as refused:
        engine().check(config)
    failure = refused.value.failure
    assert (failure.stage, failure.cause, failure.exit_code) == (Stage.CHECK, Cause.INVALID_FLAGS, 2)
    assert engine().cpus(config) >= 1


def test_the_memory_limit_hangs_on_the_machine() -> None:
    assert (memory_mib() or 0) > 256


@pytest.mark.parametrize(
    ("config", "args", "threads"),
    [
        ({"threads": 3}, {}, 3),
        ({"threads": 1, "threads-batch": 4}, {}, 4),
        ({"threads": 4, "threads-batch": 1}, {}, 4),
        ({"threads": "2"}, {}, 2),
        ({}, {"threads": 5}, 5),
        ({}, {}, os.cpu_count()),
        ({"threads": -1}, {}, os.cpu_count()),
    ],
)
def test_it_holds_a_cpu_for_each_thread_and_one_for_the_load(
    config: dict[str, Any], args: dict[str, Any], threads: int
) -> None:
    llamacpp = engine(engine={"args": args})
    assert (llamacpp.cpus(config), llamacpp.gpus(config)) == (threads + 1, 0)


@pytest.mark.parametrize("python", [sys.executable, "/no/such/python"])
def test_without_it_one_line_says_what_to_do(
    python: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tuner.engines.llamacpp.adapter._PACKAGE", "no-such-package")
    with pytest.raises(EngineUnavailable) as raised:
        engine(engine={"python": python}).version()
    text = str(raised.value)
    assert text.startswith("llamacpp: ") and "\n" not in text
    assert python in text and "engine.python" in text
    assert "inference-autotuner[llamacpp]" in text or python != sys.executable


def test_a_command_of_the_task_would_not_be_used_and_is_refused() -> None:
    with pytest.raises(EngineUnavailable, match=r"llamacpp: engine\.command is of no use"):
        engine(engine={"command": ["llama-server"]}).version()


# --- its logs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "code", "cause", "detail"),
    [
        ("invalid-choice", 2, Cause.INVALID_FLAGS, "argument --flash-attn: invalid choice: 'maybe'"),
        ("unrecognized-arguments", 2, Cause.INVALID_FLAGS, "unrecognized arguments: --no-such-flag 1"),
        ("out-of-range", 2, Cause.INVALID_FLAGS, "argument --batch-size: 0 is not between 1 and"),
        ("quantized-v-cache", 1, Cause.INVALID_FLAGS, "quantized V cache requires flash_attn"),
        ("model-not-found", 1, Cause.MODEL_NOT_FOUND, "failed to open GGUF file 'nowhere.gguf' (No such"),
        ("model-cut-off", 1, Cause.MODEL_NOT_FOUND, "data is not within the file bounds"),
        ("not-gguf", 1, Cause.MODEL_NOT_FOUND, "invalid magic characters"),
        ("context-too-large", 1, Cause.OUT_OF_MEMORY, "failed to initialize the context: std::bad_alloc"),
        ("no-memory-for-kv", 1, Cause.OUT_OF_MEMORY, "failed to allocate buffer for kv cache"),
        ("too-many-slots", -6, Cause.OUT_OF_MEMORY, "Resource temporarily unavailable"),
        ("port-taken", 1, Cause.PORT_TAKEN, "couldn't bind HTTP server socket"),
        ("assertion", -6, Cause.CRASH, "GGML_ASSERT(n_outputs >= 1) failed"),
    ],
)
def test_a_log_tells_the_cause(log: str, code: int, cause: Cause, detail: str) -> None:
    failure = diagnose(Stage.START, code, (LOGS / f"llamacpp-{log}.log").read_text(), SIGNS)
    assert (failure.stage, failure.cause, failure.exit_code) == (Stage.START, cause, code)
    assert detail in failure.detail
    assert detail in failure.evidence


def test_every_log_is_in_the_table() -> None:
    [table] = [mark for mark in test_a_log_tells_the_cause.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert {f"llamacpp-{row[0]}.log" for row in table.args[1]} == {
        path.name for path in LOGS.glob("llamacpp-*.log")
    }


# --- a study -------------------------------------------------------------------------------------------


def short(gguf: Path) -> Task:
    """The task file that comes with the project, on the tiny model and cut short."""
    full = load_task(CONFIG)
    return make_task(
        {
            **full.model_dump(mode="json", exclude_unset=True),
            "model": {"id_or_path": str(gguf)},
            "parameters": {**full.model_dump(mode="json")["parameters"], "threads": [1], "parallel": [1, 8]},
            "optimization": {"objective": "minimize_ttft", "max_iterations": 5, "confirm": 0, "seed": 1},
            "slo": {},
            "benchmark": {
                "traffic_scenarios": ["D(30,32)"],
                "num_concurrency": [8],
                "max_requests_per_iteration": 16,
            },
        }
    )


def test_the_task_file_can_be_checked() -> None:
    lines = list(check_task(CONFIG))
    assert any(line.split() == ["GPUs", "0", "for", "a", "trial"] for line in lines)
    assert not any("8 GPUs" in line or line.startswith("Refused") for line in lines)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_real_study_ends_with_a_best_that_is_no_worse_than_the_defaults(gguf: Path, tmp_path: Path) -> None:
    outcome = run_study(short(gguf), results=tmp_path, study="real")
    trials = outcome.results.trials
    assert outcome.exit_code == 0
    assert trials["failure_cause"].isna().all()
    assert not trials["simulated"].any()
    assert (trials["gpus"] == 0).all()
    assert (trials["kv_tokens"] == 8192).all()
    assert list(trials["kind"])[:5] == ["baseline"] + ["search"] * 4
    assert (outcome.results.requests["output_tokens"] == 32).all()
    found = summary(outcome.results)
    assert found.best is not None and found.baseline is not None and found.gain is not None
    assert found.best["loss"] <= found.baseline["loss"]
    assert found.gain.share >= 0
    _defaults_ran_alone(trials)


def _defaults_ran_alone(trials: pd.DataFrame) -> None:
    """The defaults hold every core: nothing may be measured beside them."""
    ends = trials["started_at"] + pd.to_timedelta(trials["duration_s"], unit="s")
    for row in trials.index[trials["config"].map(len) == 0]:
        others = trials.index != row
        beside = (trials["started_at"] < ends[row]) & (ends > trials["started_at"][row]) & others
        assert not beside.any()
