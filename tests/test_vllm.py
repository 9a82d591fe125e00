"""vLLM: the contract on a stand-in, its command line, its GPUs, what its server says, what its logs tell."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from contracts.engine_contract import EngineContract
from hypothesis import given
from hypothesis import strategies as st

from tuner.capacity import gpu_range
from tuner.engines import make_engine
from tuner.engines.process import EngineProcess
from tuner.engines.server import Server, diagnose
from tuner.engines.vllm import SIGNS, VllmEngine, flag_arguments
from tuner.errors import EngineUnavailable
from tuner.failures import Cause, Stage, TrialFailed
from tuner.task import make_task

LOGS = Path(__file__).parent / "data" / "logs"
STAND_IN = {"PYTHONPATH": str(Path(__file__).parent / "stand_ins")}


def engine(**sections: Any) -> VllmEngine:
    model = {"id_or_path": "meta-llama/Llama-3.2-1B-Instruct"}
    return VllmEngine(make_task({"model": model, "base_runtime": "vllm", **sections}))


# --- the whole path, on a stand-in ---------------------------------------------------------------------


class TestStandIn(EngineContract):
    """`python -m vllm.entrypoints.cli.main serve`, of a package that only looks like vLLM."""

    @pytest.fixture
    def engine(self) -> VllmEngine:
        return engine(
            model={"id_or_path": "llama-3.1-8b-instruct"},
            benchmark={"model_name": f"served-{uuid4().hex}"},
            engine={"env": STAND_IN, "args": {"enforce-eager": True}},
        )

    @pytest.fixture
    def hopeless(self) -> Mapping[str, Any]:
        return {"gpu-memory-utilization": 0.05}

    def test_its_version_is_that_of_the_package(self, engine: VllmEngine) -> None:
        assert engine.version() == "0.32.0"

    def test_what_it_was_given_and_its_cache_are_read_from_its_log(
        self, engine: VllmEngine, tmp_path: Path
    ) -> None:
        config = {"max-num-seqs": 7, "enable-prefix-caching": False}
        with self._launch(engine, config, tmp_path) as server:
            info = server.info
        assert info.version == "0.32.0"
        assert info.kv_tokens and info.kv_tokens > 100_000
        assert info.effective_args["max-num-seqs"] == 7
        assert info.effective_args["enable-prefix-caching"] is False
        assert info.effective_args["enforce-eager"] is True

    @pytest.mark.parametrize(
        ("config", "cause"),
        [
            ({"max-num-seqs": "many"}, Cause.INVALID_FLAGS),
            ({"gpu-memory-utilization": 0.05}, Cause.OUT_OF_MEMORY),
        ],
    )
    def test_a_failed_start_has_its_cause(
        self, engine: VllmEngine, config: dict[str, Any], cause: Cause, tmp_path: Path
    ) -> None:
        with pytest.raises(TrialFailed) as failed:
            self._launch(engine, config, tmp_path).__enter__()
        assert (failed.value.failure.stage, failed.value.failure.cause) == (Stage.START, cause)


# --- the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "argv"),
    [
        ({}, []),
        ({"tensor-parallel-size": 2}, ["--tensor-parallel-size", "2"]),
        ({"gpu-memory-utilization": 0.85}, ["--gpu-memory-utilization", "0.85"]),
        ({"enable-prefix-caching": True}, ["--enable-prefix-caching"]),
        ({"enable-prefix-caching": False}, ["--no-enable-prefix-caching"]),
        ({"enable_chunked_prefill": False}, ["--no-enable_chunked_prefill"]),
        ({"disable-log-stats": True}, ["--disable-log-stats"]),
        ({"disable-log-stats": False, "disable_log_stats": False}, []),
        ({"block-size": None}, []),
        ({"compilation-config": '{"level": 3}'}, ["--compilation-config", '{"level": 3}']),
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
        if value is None or (value is False and flag == "grpc"):
            continue
        assert next(argv) == (f"--no-{flag}" if value is False else f"--{flag}")
        if not isinstance(value, bool):
            text = next(argv)
            assert text == value if isinstance(value, str) else type(value)(text) == value
    assert next(argv, None) is None


def test_the_launch_command_of_a_configuration() -> None:
    vllm = engine(
        parameters={"max-num-seqs": [64, 256], "enable-prefix-caching": [True, False]},
        engine={"args": {"max-model-len": 4096}, "python": "/opt/vllm/bin/python"},
        benchmark={"model_name": "llama"},
    )
    assert vllm.launch_command({"max-num-seqs": 64, "enable-prefix-caching": False}) == [
        *("vllm", "serve", "meta-llama/Llama-3.2-1B-Instruct"),
        *("--served-model-name", "llama", "--host", "0.0.0.0", "--port", "30000"),
        *("--max-model-len", "4096", "--max-num-seqs", "64", "--no-enable-prefix-caching"),
    ]


def test_the_defaults_are_launched_without_flags() -> None:
    assert engine().launch_command({}) == [
        *("vllm", "serve", "meta-llama/Llama-3.2-1B-Instruct"),
        *("--served-model-name", "meta-llama/Llama-3.2-1B-Instruct", "--host", "0.0.0.0", "--port", "30000"),
    ]


# --- GPUs, and what is refused at once -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "gpus"),
    [
        ({}, 1),
        ({"tensor-parallel-size": 4}, 4),
        ({"tensor_parallel_size": 4}, 4),
        ({"tensor-parallel-size": 2, "pipeline-parallel-size": 3}, 6),
        ({"data-parallel-size": 2, "tensor-parallel-size": 2, "pipeline-parallel-size": 2}, 8),
        ({"tensor-parallel-size": 2, "prefill-context-parallel-size": 2}, 4),
        ({"tensor-parallel-size": 4, "decode-context-parallel-size": 2}, 4),  # within the four
        ({"tensor-parallel-size": None, "gpu-memory-utilization": 0.9}, 1),
        ({"tensor_parallel_size": "two", "data-parallel-size": 0.5}, 1),  # which no task may say
    ],
)
def test_gpus_are_the_product_of_the_parallel_sizes(config: dict[str, Any], gpus: int) -> None:
    assert engine().gpus(config) == gpus
    told = {flag: value for flag, value in config.items() if flag.replace("_", "-") in VllmEngine.gpu_flags}
    assert engine().gpus(told) == gpus


def test_fixed_flags_count_too() -> None:
    vllm = engine(engine={"args": {"pipeline_parallel_size": 2}}, parameters={"tensor-parallel-size": [1, 2]})
    assert (vllm.gpus({}), vllm.gpus({"tensor-parallel-size": 4})) == (2, 8)
    assert gpu_range(vllm.task.space, vllm) == (2, 4)


def test_a_batch_smaller_than_its_sequences_is_refused_before_anything_starts() -> None:
    vllm = engine(engine={"args": {"max-num-batched-tokens": 64}})
    with pytest.raises(TrialFailed, match=r"\(64\) must be at least max-num-seqs \(128\)") as refused:
        vllm.check({"max-num-seqs": 128})
    assert (refused.value.failure.stage, refused.value.failure.cause) == (Stage.CHECK, Cause.INVALID_FLAGS)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (
            {"max-num-sequences": 8},
            "unrecognized argument --max-num-sequences (did you mean --max-num-seqs?)",
        ),
        ({"max_num_seqs": "many"}, "argument --max-num-seqs: invalid int value: 'many'"),
        ({"enforce-eager": 1}, "argument --enforce-eager: takes no value, got 1"),
        ({"no-such": False}, "unrecognized argument --no-no-such"),
        ({"port": 8000}, "argument --port: is chosen for each trial"),
        ({"api_key": "k"}, "argument --api-key: the load client"),
    ],
)
def test_flags_that_the_parser_would_refuse_are_refused_before_anything_starts(
    config: dict[str, Any], problem: str
) -> None:
    with pytest.raises(TrialFailed) as refused:
        engine(engine={"env": STAND_IN}).check(config)
    failure = refused.value.failure
    assert (failure.stage, failure.cause) == (Stage.CHECK, Cause.INVALID_FLAGS)
    assert problem in failure.detail


def test_flags_that_the_parser_takes_pass() -> None:
    engine(engine={"env": STAND_IN}).check(
        {
            "max_num_seqs": 8,
            "max-num-batched-tokens": "64",
            "enable-prefix-caching": False,
            "disable-log-stats": False,
            "max-model-len": None,
            "compilation-config.mode": 3,
        }
    )


# --- a vLLM that is not there --------------------------------------------------------------------------


@pytest.mark.parametrize("python", [sys.executable, "/no/such/python", "/etc/passwd"])
def test_without_vllm_one_line_says_what_to_do(python: str) -> None:
    with pytest.raises(EngineUnavailable) as raised:
        engine(engine={"python": python}).version()
    text = str(raised.value)
    assert text.startswith("vllm")
    assert "\n" not in text
    assert python in text and "engine.python" in text
    assert raised.value.exit_code == 2


def test_it_is_the_engine_of_its_name() -> None:
    found = make_engine(make_task({}), "vllm")
    assert isinstance(found, VllmEngine)
    assert (found.name, found.simulated) == ("vllm", False)


# --- what its server says ------------------------------------------------------------------------------


@contextmanager
def answering(answers: Mapping[str, Any], folder: Path, log: str = "") -> Iterator[tuple[Server, list[str]]]:
    """A server on loopback with these answers as JSON, behind a process with this log; what it was asked."""
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            self.send_response(200 if path in answers else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(path)).encode())

        do_POST = do_GET

        def log_message(self, *anything: Any) -> None:
            """Silent."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    program = [sys.executable, "-I", "-S", "-c", "import sys; print(sys.argv[1])", log]
    try:
        with EngineProcess(program, env={}, log_path=folder / "log") as process:
            while process.poll() is None:
                pass
            yield Server(process, SIGNS, f"http://127.0.0.1:{http.server_port}", "m"), asked
    finally:
        http.shutdown()
        http.server_close()


RESOLVED = {
    "vllm_config": {
        "model_config": {"max_model_len": 2048, "hf_token": "hf_secret", "dtype": "torch.bfloat16"},
        "cache_config": {
            "block_size": 128,
            "cache_dtype": "auto",
            "enable_prefix_caching": True,
            "gpu_memory_utilization": 0.92,
            "kv_cache_size_tokens": 1048576,
        },
        "parallel_config": {"tensor_parallel_size": 1, "placement_group": None, "devices": [[0]]},
        "scheduler_config": {"max_num_batched_tokens": 2048, "max_num_seqs": 128, "policy": "fcfs"},
        "observability_config": {"kv_cache_metrics": False},
        "quant_config": None,
    },
    "vllm_env": {"VLLM_API_KEY": "secret"},
}
ARGS_LINE = (
    "(APIServer pid=1) INFO 11-24 08:51:30 [api_utils.py:286] non-default args: "
    "{'model_tag': 'm', 'max_num_seqs': 7, 'api_key': '***', 'served_model_name': ['tiny']}\n"
)
KV_LINE = (
    "(EngineCore pid=2) INFO 11-24 08:51:45 [kv_cache_utils.py:2327] GPU KV cache size: 40,960 tokens, M\n"
)


def test_what_the_server_resolved_is_told_as_flags(tmp_path: Path) -> None:
    answers = {"/server_info": RESOLVED, "/version": {"version": "0.32.0"}}
    with answering(answers, tmp_path, KV_LINE) as (server, asked):
        info = engine().info(server)
    assert info.version == "0.32.0"
    assert info.kv_tokens == 1048576
    assert info.effective_args == {
        "max-model-len": 2048,
        "dtype": "torch.bfloat16",
        "block-size": 128,
        "kv-cache-dtype": "auto",
        "enable-prefix-caching": True,
        "gpu-memory-utilization": 0.92,
        "kv-cache-size-tokens": 1048576,
        "tensor-parallel-size": 1,
        "placement-group": None,
        "max-num-batched-tokens": 2048,
        "max-num-seqs": 128,
        "scheduling-policy": "fcfs",
        "quant-config": None,
    }
    assert "GET /server_info?config_format=json" in asked


@pytest.mark.parametrize(
    "said", [{}, {"/server_info": {"vllm_config": "model='m', ..."}}, {"/server_info": [1]}]
)
def test_an_older_version_is_read_from_its_log(said: dict[str, Any], tmp_path: Path) -> None:
    with answering({**said, "/version": {"version": "0.9.2"}}, tmp_path, ARGS_LINE + KV_LINE) as (server, _):
        info = engine().info(server)
    assert (info.version, info.kv_tokens) == ("0.9.2", 40_960)
    assert info.effective_args == {"model-tag": "m", "max-num-seqs": 7}


@pytest.mark.parametrize("log", ["", "non-default args: {'dtype': <DType.AUTO>}\n", "non-default args: {}\n"])
def test_a_log_without_arguments_tells_none(log: str, tmp_path: Path) -> None:
    with answering({"/version": {"version": "1"}}, tmp_path, log) as (server, _):
        info = engine().info(server)
    assert (info.kv_tokens, info.effective_args) == (None, {})


def test_its_cache_is_flushed_where_vllm_does_it(tmp_path: Path) -> None:
    with answering({"/reset_prefix_cache": {"success": True}}, tmp_path) as (server, asked):
        server.flush_paths = engine().flush_paths
        server.flush_cache()
    assert asked == ["POST /reset_prefix_cache"]


def test_a_flush_that_is_refused_is_asked_for_again(tmp_path: Path) -> None:
    answers = {"/reset_prefix_cache": {"success": False}}
    with answering(answers, tmp_path) as (server, asked):
        server.flush_paths = engine().flush_paths
        threading.Timer(0.3, answers.update, [{"/reset_prefix_cache": {"success": True}}]).start()
        server.flush_cache()
    assert len(asked) > 1 and answers["/reset_prefix_cache"]["success"]


def test_its_development_endpoints_are_there_for_that_unless_the_task_says_no() -> None:
    assert engine()._env()["VLLM_SERVER_DEV_MODE"] == "1"
    off = engine(engine={"env": {"VLLM_SERVER_DEV_MODE": "0"}})
    assert off._env()["VLLM_SERVER_DEV_MODE"] == "0"


# --- its logs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "code", "cause", "detail"),
    [
        ("invalid-choice", 2, Cause.INVALID_FLAGS, "argument --scheduling-policy: invalid choice: 'nosuch'"),
        ("unrecognized-arguments", 2, Cause.INVALID_FLAGS, "unrecognized arguments: --no-such-flag 1"),
        ("model-not-found", 1, Cause.MODEL_NOT_FOUND, "Repo id must be in the form"),
        ("not-in-cache", 1, Cause.MODEL_NOT_FOUND, "Cannot find an appropriate cached snapshot"),
        ("max-model-len", 1, Cause.INVALID_FLAGS, "(100000) is greater than the derived max_model_len"),
        (
            "batched-tokens",
            1,
            Cause.INVALID_FLAGS,
            "(64) must be greater than or equal to max_num_seqs (128)",
        ),
        ("not-divisible", 1, Cause.INVALID_FLAGS, "(4) must be divisible by tensor parallel size (3)"),
        ("block-size", 1, Cause.INVALID_FLAGS, "No common block size for 16"),
        ("kv-too-small", 1, Cause.OUT_OF_MEMORY, "(7.63 GiB KV cache is needed, which is larger than"),
        ("no-memory-for-kv", 1, Cause.OUT_OF_MEMORY, "No available memory for the cache blocks"),
        ("no-memory-on-cpu", 1, Cause.OUT_OF_MEMORY, "is less than requested memory for kv"),
        ("less-free-than-wanted", 1, Cause.OUT_OF_MEMORY, "Free memory on device cuda:0 (61.3/79.11 GiB)"),
        ("out-of-memory", 1, Cause.OUT_OF_MEMORY, "torch.OutOfMemoryError: CUDA out of memory"),
        (
            "no-such-gpus",
            1,
            Cause.NO_SUCH_GPUS,
            "World size (4) is larger than the number of available GPUs (2)",
        ),
        ("port-taken", 1, Cause.PORT_TAKEN, "[Errno 98] Address already in use"),
        ("nccl-error", 1, Cause.DRIVER, "NCCL error: unhandled system error"),
        ("broken-gpu", 1, Cause.DRIVER, "CUDA error: uncorrectable ECC error encountered"),
        ("no-driver", 1, Cause.DRIVER, "Failed to infer device type"),
        ("memory-of-others", 1, Cause.GPU_IN_USE, "Error in memory profiling. Initial free memory 70.11 GiB"),
    ],
)
def test_a_log_tells_the_cause(log: str, code: int, cause: Cause, detail: str) -> None:
    failure = diagnose(Stage.START, code, (LOGS / f"vllm-{log}.log").read_text(), SIGNS)
    assert (failure.stage, failure.cause, failure.exit_code) == (Stage.START, cause, code)
    assert detail in failure.detail
    assert "\n" not in failure.detail
    assert failure.evidence


@pytest.mark.parametrize(
    "said",
    [
        "huggingface_hub.errors.GatedRepoError: 401 Client Error.",
        "OSError: You are trying to access a gated repo.",
    ],
)
def test_a_gated_model_is_not_found(said: str) -> None:
    failure = diagnose(Stage.START, 1, f"{said}\nRuntimeError: Engine core initialization failed.", SIGNS)
    assert failure.cause is Cause.MODEL_NOT_FOUND


def test_every_log_is_in_the_table() -> None:
    [table] = [mark for mark in test_a_log_tells_the_cause.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert {f"vllm-{row[0]}.log" for row in table.args[1]} == {path.name for path in LOGS.glob("vllm-*.log")}


def test_a_cause_that_is_unknown_is_told_by_the_exception_below_and_not_by_the_last_line() -> None:
    log = (
        "(EngineCore pid=2) ERROR 11-24 09:01:30 [core.py:1510] Traceback (most recent call last):\n"
        "(EngineCore pid=2) ERROR 11-24 09:01:30 [core.py:1510] somewhere.OddError: never heard of\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
    )
    failure = diagnose(Stage.START, 1, log, SIGNS)
    assert failure.cause is Cause.CRASH
    assert "OddError: never heard of" in failure.detail
    assert "See root cause above" in diagnose(Stage.START, 1, log.splitlines()[-1], SIGNS).detail
