"""SGLang: its command line, its GPUs, what its server says, and what its logs tell."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.capacity import gpu_range
from tuner.engines import make_engine
from tuner.engines.flags import ASK, Flag, installed_flags
from tuner.engines.server import diagnose
from tuner.engines.sglang import SIGNS, SGLangEngine, flag_arguments, server_info
from tuner.errors import EngineUnavailable
from tuner.failures import Cause, Stage, TrialFailed
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
        ({"tensor-parallel-size": 4, "data-parallel-size": 2}, 8),
        ({"tp-size": 4, "tensor-parallel-size": 2}, 2),  # the last on the command line
        ({"tp-size": 8, "dp-size": 8, "enable-dp-attention": True}, 8),
        ({"tp-size": 2, "device": "cpu"}, 0),
        ({"tp-size": "two"}, 1),
    ],
)
def test_gpus_are_the_product_of_the_parallel_sizes(config: dict[str, Any], gpus: int) -> None:
    assert engine().gpus(config) == gpus
    told = {flag: value for flag, value in config.items() if flag in SGLangEngine.gpu_flags}
    assert engine().gpus(told) == gpus


@pytest.mark.parametrize(
    ("config", "cpus"),
    [({"tp-size": 4}, 1), ({"device": "cpu"}, 2), ({"device": "cpu", "tp-size": 2, "dp-size": 2}, 5)],
)
def test_on_a_cpu_every_rank_holds_one(config: dict[str, Any], cpus: int) -> None:
    assert engine().cpus(config) == cpus


def test_fixed_flags_count_too() -> None:
    sglang = engine(engine={"args": {"pp-size": 2}})
    assert (sglang.gpus({}), sglang.gpus({"tp-size": 4})) == (2, 8)
    assert gpu_range(sglang.task.space, sglang) == (2, 4)


# --- its flags -----------------------------------------------------------------------------------------

PARSER = Path(__file__).parent / "data" / "flags" / "sglang-0.5.23.json"  # as the real one told them
INTERPRETER = """#!{python} -IS
import sys
with open({calls!r}, "a") as calls:
    calls.write(" ".join(sys.argv[3:]) + "\\n")
if "importlib.metadata" in sys.argv[2]:
    print({version!r})
else:
    print("a library greets")
    print(open({parser!r}).read())
    print("a library says goodbye")
"""


class Installed:
    """An interpreter that has SGLang: a script that answers as the real one does, and counts its calls."""

    def __init__(self, folder: Path, version: str = "0.5.23", parser: Path = PARSER) -> None:
        self.python = folder / "python"
        self._calls = folder / "calls"
        script = INTERPRETER.format(
            python=sys.executable, calls=str(self._calls), version=version, parser=str(parser)
        )
        self.python.write_text(script)
        self.python.chmod(0o755)

    def engine(self, **args: Any) -> SGLangEngine:
        return engine(engine={"python": str(self.python), "args": args}, parameters={"x": [1, 2]})

    def times_asked(self) -> int:
        return self._calls.read_text().splitlines().count("sglang.launch_server --help")


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return Installed(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tp-size": 2, "tensor-parallel-size": 2, "mem-fraction-static": 0.85, "schedule-policy": "lpm"},
        {"chunked-prefill-size": -1, "schedule-conservativeness": 1, "log-requests-level": 2},
        {"enable-mixed-chunk": True, "disable-radix-cache": False, "page-size": None},
        {"no-dllm-fdfo": True, "dllm-fdfo": True, "enable-tf32-matmul": False},
        {"context-length": "4k", "json-model-override-args": '{"a": 1}', "lora-paths": "a=b"},
        {"tp-size": "2", "watchdog-timeout": "1e3", "revision": "-1"},
    ],
)
def test_what_the_parser_takes_passes_the_check(config: dict[str, Any], installed: Installed) -> None:
    installed.engine().check(config)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (
            {"schedule-polcy": "lpm"},
            "unrecognized argument --schedule-polcy (did you mean --schedule-policy?)",
        ),
        ({"zzzzzz": 1}, "unrecognized argument --zzzzzz"),
        ({"tp": 2}, "unrecognized argument --tp (did you mean --tp-size?)"),
        (
            {"schedule-policy": "fcsf"},
            "argument --schedule-policy: invalid choice: 'fcsf' (choose from lpm, ",
        ),
        ({"schedule-policy": "fcsf"}, "did you mean fcfs?"),
        ({"schedule-policy": True}, "argument --schedule-policy: expected a value, got true"),
        ({"schedule-policy": 1}, "argument --schedule-policy: invalid choice: '1'"),
        ({"log-requests-level": 9}, "argument --log-requests-level: invalid choice: '9'"),
        ({"tp-size": "two"}, "argument --tp-size: invalid int value: 'two'"),
        ({"tp-size": 2.0}, "argument --tp-size: invalid int value: '2.0'"),
        ({"mem-fraction-static": "high"}, "argument --mem-fraction-static: invalid float value: 'high'"),
        ({"enable-metrics": 1}, "argument --enable-metrics: takes no value, got 1 (true or false)"),
        ({"dllm-fdfo": False}, "is on by default, and false only leaves it out; no-dllm-fdfo: true"),
        ({"revision": "-main"}, "argument --revision: expected a value, got '-main', which reads as a flag"),
        ({"port": 1}, "argument --port: is chosen for each trial"),
        ({"model": "m"}, "argument --model: comes from model.id_or_path"),
        ({"api-key": "k"}, "argument --api-key: the load client speaks plain HTTP without a key"),
    ],
)
def test_what_the_parser_refuses_is_refused_before_a_gpu_is_held(
    config: dict[str, Any], problem: str, installed: Installed
) -> None:
    with pytest.raises(TrialFailed) as refused:
        installed.engine().check(config)
    failure = refused.value.failure
    assert (failure.stage, failure.cause) == (Stage.CHECK, Cause.INVALID_FLAGS)
    assert problem in failure.detail and "\n" not in failure.detail


def test_fixed_flags_are_checked_too(installed: Installed) -> None:
    with pytest.raises(TrialFailed, match="--no-such-flag"):
        installed.engine(**{"no-such-flag": 1}).check({})


def test_the_parser_is_asked_once_for_a_version(tmp_path: Path, installed: Installed) -> None:
    for _ in range(2):
        adapter = installed.engine()
        adapter.check({"tp-size": 1})
        adapter.check({"tp-size": 2})
    assert installed.times_asked() == 1
    Installed(tmp_path, version="0.5.24").engine().check({})
    assert installed.times_asked() == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 0, "key": [], "flags": []}'])
def test_a_cache_that_cannot_be_read_is_written_anew(
    content: str, installed: Installed, data_folder: Path
) -> None:
    installed.engine().check({})
    [kept] = (data_folder / "cache").iterdir()
    good = kept.read_text()
    kept.write_text(content)
    with pytest.raises(TrialFailed, match="--no-such-flag"):
        installed.engine().check({"no-such-flag": 1})
    assert kept.read_text() == good
    assert installed.times_asked() == 2
    assert list((data_folder / "cache").iterdir()) == [kept]


def test_a_cache_that_cannot_be_written_costs_only_time(installed: Installed, data_folder: Path) -> None:
    data_folder.mkdir()
    (data_folder / "cache").write_text("a file, where the folder should be")
    with pytest.raises(TrialFailed, match="--no-such-flag"):
        installed.engine().check({"no-such-flag": 1})


@pytest.mark.parametrize("said", ["", "usage: launch_server [-h]", "[]", "[1]", '[{"names": ["--x"]}]'])
def test_where_the_parser_cannot_be_asked_the_start_will_tell(said: str, tmp_path: Path) -> None:
    (tmp_path / "said").write_text(said)
    Installed(tmp_path, parser=tmp_path / "said").engine().check({"no-such-flag": 1})


def test_without_sglang_the_check_says_what_is_missing() -> None:
    with pytest.raises(EngineUnavailable, match="pip install sglang"):
        engine().check({})


PROGRAM = """
import argparse, sys
parser = argparse.ArgumentParser()
parser.add_argument("--count", "-c", type=int, nargs="?", choices=range(3))
parser.add_argument("--on", action=argparse.BooleanOptionalAction, default=True)
parser.add_argument("--many", nargs="+")
parser.parse_args()
"""


def test_a_parser_tells_its_options(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    flags = installed_flags(
        [sys.executable, "-c", ASK, "program", "--help"],
        env={"PYTHONPATH": str(tmp_path)},
        key=("program",),
        folder=tmp_path,
    )
    assert flags is not None
    _, count, on, many = flags.all
    assert count == Flag(("--count",), True, False, "int", ("0", "1", "2"), False)
    assert on == Flag(("--on", "--no-on"), False, False, None, None, True)
    assert many == Flag(("--many",), True, True, None, None, False)


def test_secrets_are_not_recorded() -> None:
    info = server_info({"api_key": "k", "admin_api_key": None, "hf_token": "t", "max_total_tokens": 5})
    assert info.effective_args == {"admin-api-key": None, "max-total-tokens": 5}


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
    info = server_info(said)
    assert (info.version, info.kv_tokens) == (version, kv_tokens)


def test_effective_arguments_are_spelt_as_flags() -> None:
    info = server_info({"tp_size": 2, "mem_fraction_static": 0.843, "lora_paths": None, "states": [{"x": 1}]})
    assert info.effective_args == {"tp-size": 2, "mem-fraction-static": 0.843, "lora-paths": None}


# --- its logs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "code", "cause", "detail"),
    [
        # Recorded from SGLang 0.5.23 on the CPU; what repeats itself is cut out.
        ("invalid-choice", 2, Cause.INVALID_FLAGS, "argument --schedule-policy: invalid choice: 'nosuch'"),
        ("unrecognized-arguments", 2, Cause.INVALID_FLAGS, "unrecognized arguments: --no-such-flag 1"),
        ("context-too-long", 1, Cause.INVALID_FLAGS, "is greater than the derived context_length (4096)"),
        ("not-divisible", 1, Cause.INVALID_FLAGS, "chunked_prefill_size must be divisible by page_size"),
        # SGLang 0.5.16, which says on the way that a file is missing that a model need not have.
        ("no-generation-config", 1, Cause.INVALID_FLAGS, "must be divisible by page_size"),
        ("warm-up-too-long", -9, Cause.INVALID_FLAGS, "exceeds the maximum allowed length (2 tokens)"),
        ("model-not-found", 1, Cause.MODEL_NOT_FOUND, "couldn't find them in the cached files"),
        ("no-such-folder", 1, Cause.MODEL_NOT_FOUND, "'namespace/repo_name': '/models/no-such-folder'"),
        ("no-memory-for-kv", -9, Cause.OUT_OF_MEMORY, "ValueError: Loaded weights leave no GPU memory"),
        ("no-memory-on-cpu", -9, Cause.OUT_OF_MEMORY, "can't allocate memory: you tried to allocate 512000"),
        ("port-taken", -9, Cause.PORT_TAKEN, "[Errno 98]"),
        ("port-of-another", 3, Cause.PORT_TAKEN, "[Errno 98]"),  # "fired up and ready to roll!"
        ("unbound-cpu", -9, Cause.CRASH, "ended by signal 9; last exception: AssertionError: SGLANG_CPU_OMP"),
        (
            "killed-under-load",
            -9,
            Cause.CRASH,
            "Subprocess scheduler_0 (pid=17431) crashed with exit code -9",
        ),
        # Written from the sources, which their first lines name: these need a GPU, or hours.
        ("out-of-memory", -9, Cause.OUT_OF_MEMORY, "torch.OutOfMemoryError: CUDA out of memory"),
        ("out-of-memory-under-load", -9, Cause.OUT_OF_MEMORY, "Decode out of memory"),
        ("nccl-out-of-memory", -9, Cause.OUT_OF_MEMORY, "Cuda failure 2 'out of memory'"),
        ("nccl-error", -9, Cause.DRIVER, "ncclSystemError: System call"),
        ("no-driver", 1, Cause.DRIVER, "Found no NVIDIA driver on your system"),
        ("broken-gpu", -9, Cause.DRIVER, "CUDA error: uncorrectable ECC error encountered"),
        ("hang", -9, Cause.HANG, "Scheduler watchdog timeout"),
        ("memory-of-others", -9, Cause.GPU_IN_USE, "The memory capacity is unbalanced"),
        ("no-host-memory", -9, Cause.OUT_OF_MEMORY, "Not enough host memory available"),
    ],
)
def test_a_log_tells_the_cause(log: str, code: int, cause: Cause, detail: str) -> None:
    text = (LOGS / f"sglang-{log}.log").read_text()
    failure = diagnose(Stage.START, code, text, SIGNS)
    assert (failure.stage, failure.cause, failure.exit_code) == (Stage.START, cause, code)
    assert detail in failure.detail
    assert detail in failure.evidence or cause is Cause.CRASH
    assert len(failure.evidence.splitlines()) <= 25


def test_a_cause_far_up_in_a_log_has_its_own_lines_as_evidence() -> None:
    noise = "".join(f"[TP7] frame {number}\n" for number in range(500))
    failure = diagnose(Stage.START, -9, f"before\nCUDA out of memory\nafter\n{noise}", SIGNS)
    assert failure.evidence.splitlines()[:3] == ["before", "CUDA out of memory", "after"]


def test_what_is_said_to_avoid_a_failure_is_none() -> None:
    said = "required memory 9GB for warmup, reducing max_m to 128 to avoid out of memory\nkilled\n"
    assert diagnose(Stage.START, -9, said, SIGNS).cause is Cause.CRASH


def test_requests_that_were_taken_back_are_not_what_it_died_of() -> None:
    said = "Decode out of memory happened. #retracted_reqs: 3, #new_token_ratio: 0.42\n"
    failure = diagnose(Stage.LOAD, -9, f"{said}CUDA error: an illegal memory access was encountered\n", SIGNS)
    assert failure.cause is Cause.CRASH


def test_a_prompt_that_was_too_long_is_not_what_the_server_died_of() -> None:
    said = (
        "[2026-11-24 12:12:18] Input length (900 tokens) exceeds the maximum allowed length (794 tokens).\n"
        "[2026-11-24 12:12:20] Subprocess scheduler_0 (pid=7) crashed with exit code -11. Triggering\n"
    )
    assert diagnose(Stage.LOAD, -9, said, SIGNS).cause is Cause.CRASH


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
