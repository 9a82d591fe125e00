"""SGLang: its command line, its GPUs, what its server says, and what its logs tell."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.engines import make_engine
from tuner.engines.server import diagnose
from tuner.engines.sglang import SIGNS, SGLangEngine, _server_info, flag_arguments
from tuner.errors import EngineUnavailable
from tuner.failures import Cause, Stage
from tuner.task import make_task

LOGS = Path(__file__).parent / "data" / "logs"


def engine(**sections: Any) -> SGLangEngine:
    model = {"id_or_path": "meta-llama/Llama-3.2-1B-Instruct"}
    return SGLangEngine(make_task({"model": model, "base_runtime": "sglang", **sections}))


# --- the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "argv"),
    [
        ({}, []),
        ({"tp-size": 2}, ["--tp-size", "2"]),
        ({"mem-fraction-static": 0.85}, ["--mem-fraction-static", "0.85"]),
        ({"schedule-policy": "lpm"}, ["--schedule-policy", "lpm"]),
        ({"enable-metrics": True}, ["--enable-metrics"]),
        ({"enable-metrics": False}, []),
        ({"page-size": None}, []),
        ({"tp-size": 1, "max-x": 0}, ["--tp-size", "1", "--max-x", "0"]),
        ({"name": "a b; rm -rf $HOME"}, ["--name", "a b; rm -rf $HOME"]),
        ({"name": ""}, ["--name", ""]),
        ({"b": 1, "a": 2}, ["--b", "1", "--a", "2"]),
    ],
)
def test_flags_as_arguments(config: dict[str, Any], argv: list[str]) -> None:
    assert flag_arguments(config) == argv


VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


@given(st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,9}", fullmatch=True), VALUES))
def test_any_flags_can_be_read_back(config: dict[str, Any]) -> None:
    argv = iter(flag_arguments(config))
    for flag, value in config.items():
        if value is None or value is False:
            continue
        assert next(argv) == f"--{flag}"
        if value is not True:
            text = next(argv)
            assert text == value if isinstance(value, str) else type(value)(text) == value
    assert next(argv, None) is None


def test_the_launch_command_of_a_configuration() -> None:
    sglang = engine(
        parameters={"tp-size": [1, 2], "attention-backend": ["triton", "fa3"]},
        engine={"args": {"enable-metrics": True, "context-length": 4096}, "python": "/opt/sglang/bin/python"},
        benchmark={"model_name": "llama"},
    )
    assert sglang.launch_command({"tp-size": 2, "attention-backend": "fa3"}) == [
        *("python", "-m", "sglang.launch_server", "--model-path", "meta-llama/Llama-3.2-1B-Instruct"),
        *("--served-model-name", "llama", "--host", "0.0.0.0", "--port", "30000"),
        *("--enable-metrics", "--context-length", "4096", "--tp-size", "2", "--attention-backend", "fa3"),
    ]


def test_the_defaults_are_launched_without_flags() -> None:
    assert engine().launch_command({}) == [
        *("python", "-m", "sglang.launch_server", "--model-path", "meta-llama/Llama-3.2-1B-Instruct"),
        *("--served-model-name", "meta-llama/Llama-3.2-1B-Instruct", "--host", "0.0.0.0", "--port", "30000"),
    ]


# --- GPUs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "gpus"),
    [
        ({}, 1),
        ({"tp-size": 4}, 4),
        ({"tp-size": 2, "pp-size": 3}, 6),
        ({"dp-size": 2, "tp-size": 2, "pp-size": 2}, 8),
        ({"mem-fraction-static": 0.9}, 1),
    ],
)
def test_gpus_are_the_product_of_the_parallel_sizes(config: dict[str, Any], gpus: int) -> None:
    assert engine().gpus(config) == gpus


def test_fixed_flags_count_too() -> None:
    sglang = engine(engine={"args": {"pp-size": 2}})
    assert (sglang.gpus({}), sglang.gpus({"tp-size": 4})) == (2, 8)
    assert sglang.task.gpu_range(sglang.gpus) == (2, 4)


# --- an SGLang that is not there -----------------------------------------------------------------------


@pytest.mark.parametrize("python", [sys.executable, "/no/such/python", "/etc/passwd"])
def test_without_sglang_one_line_says_what_to_do(python: str) -> None:
    with pytest.raises(EngineUnavailable) as raised:
        engine(engine={"python": python}).version()
    text = str(raised.value)
    assert text.startswith("sglang")
    assert "\n" not in text
    assert python in text and "engine.python" in text
    assert raised.value.exit_code == 2


def test_it_is_the_engine_of_its_name() -> None:
    found = make_engine(make_task({}), "sglang")
    assert isinstance(found, SGLangEngine)
    assert (found.name, found.simulated) == ("sglang", False)


# --- what its server says ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "version", "kv_tokens"),
    [
        ({"version": "0.5.23", "max_total_num_tokens": 16384}, "0.5.23", 16384),
        ({"version": "0.5.2", "internal_states": [{"max_total_num_tokens": 99}]}, "0.5.2", 99),
        ({"internal_states": []}, "", None),
        ({"internal_states": ["?"]}, "", None),
        ({}, "", None),
    ],
)
def test_server_info(said: dict[str, Any], version: str, kv_tokens: int | None) -> None:
    info = _server_info(said)
    assert (info.version, info.kv_tokens) == (version, kv_tokens)


def test_effective_arguments_are_spelt_as_flags() -> None:
    info = _server_info(
        {"tp_size": 2, "mem_fraction_static": 0.843, "lora_paths": None, "states": [{"x": 1}]}
    )
    assert info.effective_args == {"tp-size": 2, "mem-fraction-static": 0.843, "lora-paths": None}


# --- its logs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "code", "cause", "detail"),
    [
        ("invalid-choice", 2, Cause.INVALID_FLAGS, "argument --schedule-policy: invalid choice: 'nosuch'"),
        ("unrecognized-arguments", 2, Cause.INVALID_FLAGS, "unrecognized arguments: --no-such-flag 1"),
        ("model-not-found", 1, Cause.MODEL_NOT_FOUND, "OSError: Repo id must be in the form"),
        ("no-memory-for-kv", -9, Cause.OUT_OF_MEMORY, "ValueError: Loaded weights leave no GPU memory"),
        ("out-of-memory", -9, Cause.OUT_OF_MEMORY, "torch.OutOfMemoryError: CUDA out of memory"),
        ("warm-up-too-long", -9, Cause.INVALID_FLAGS, "exceeds the maximum allowed length (2 tokens)"),
        ("port-taken", 137, Cause.PORT_TAKEN, "[Errno 98]"),
        ("unbound-cpu", -9, Cause.CRASH, "ended by signal 9; last line: "),
    ],
)
def test_a_log_tells_the_cause(log: str, code: int, cause: Cause, detail: str) -> None:
    text = (LOGS / f"sglang-{log}.log").read_text()
    failure = diagnose(Stage.START, code, text, SIGNS)
    assert (failure.stage, failure.cause, failure.exit_code) == (Stage.START, cause, code)
    assert detail in failure.detail
    assert "\n" not in failure.detail
    assert failure.evidence.splitlines() == [line.rstrip() for line in text.splitlines() if line.strip()]


def test_every_log_is_in_the_table() -> None:
    [table] = [mark for mark in test_a_log_tells_the_cause.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert {f"sglang-{row[0]}.log" for row in table.args[1]} == {
        path.name for path in LOGS.glob("sglang-*.log")
    }


def test_killed_is_no_proof_of_out_of_memory() -> None:
    failure = diagnose(Stage.LOAD, -signal.SIGKILL, "Received sigquit from a child process\n", SIGNS)
    assert failure.cause is Cause.CRASH
    assert failure.detail == "ended by signal 9; last line: Received sigquit from a child process"


@pytest.mark.parametrize(
    ("code", "log", "detail"),
    [(1, "", "ended with exit code 1; last line: no output"), (0, " \n\n", "ended with exit code 0")],
)
def test_a_silent_end_is_a_crash(code: int, log: str, detail: str) -> None:
    failure = diagnose(Stage.START, code, log, SIGNS)
    assert failure.cause is Cause.CRASH and failure.detail.startswith(detail)
    assert failure.evidence == ""


def test_of_two_signs_the_first_in_the_table_and_the_last_in_the_log_counts() -> None:
    log = "address already in use A\nCUDA out of memory\naddress already in use B\nlater\n"
    failure = diagnose(Stage.START, 1, log, SIGNS)
    assert (failure.cause, failure.detail) == (Cause.PORT_TAKEN, "address already in use B")


def test_evidence_and_detail_are_bounded() -> None:
    log = "".join(f"line {n}\n" for n in range(1000)) + "CUDA out of memory " + "x" * 5000
    failure = diagnose(Stage.LOAD, 1, log, SIGNS)
    assert len(failure.detail) <= 300
    assert len(failure.evidence.splitlines()) == 25
