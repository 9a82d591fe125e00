"""The simulator's command line, models and memory: what starts, and how what does not start ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.engines.simulator.flags import parse_args
from tuner.engines.simulator.gpus import GPUS
from tuner.engines.simulator.memory import Plan, StartFailure, make_plan
from tuner.engines.simulator.models import find_model

MODEL = "llama-3.2-1b-instruct"
KILLED = -signal.SIGKILL


def start(*flags: str) -> subprocess.CompletedProcess[str]:
    """Runs a server that is expected to fail."""
    command = [sys.executable, "-m", "tuner.engines.simulator", "--port", "1", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def plan(flags: str) -> Plan:
    args = parse_args(flags.split())
    return make_plan(args, find_model(args.model_path), GPUS[args.gpu])


@pytest.mark.parametrize(
    ("flags", "code", "line"),
    [
        (
            f"--model-path {MODEL} --schedule-policy nosuch",
            2,
            "argument --schedule-policy: invalid choice: 'nosuch'",
        ),
        (
            f"--model-path {MODEL} --attention-backend nosuch",
            2,
            "argument --attention-backend: invalid choice:",
        ),
        (f"--model-path {MODEL} --no-such-flag 1", 2, "error: unrecognized arguments: --no-such-flag 1"),
        (f"--model-path {MODEL} --tp-size two", 2, "invalid int value: 'two'"),
        (
            "--model-path nosuch/model",
            1,
            "OSError: nosuch/model is not a local folder and is not a valid model id",
        ),
        (
            f"--model-path {MODEL} --context-length 1000000",
            1,
            "ValueError: User-specified context_length (1000000)",
        ),
        (f"--model-path {MODEL} --tp-size 3", KILLED, "AssertionError: 32 is not divisible by 3"),
        (
            f"--model-path {MODEL} --quantization awq",
            KILLED,
            "ValueError: Cannot find the config file for awq",
        ),
        (
            "--model-path qwen2.5-7b-awq --quantization fp8",
            1,
            "ValueError: Quantization method specified in the model config (awq) does not match the quant",
        ),
        (
            f"--model-path {MODEL} --speculative-algorithm EAGLE --speculative-eagle-topk 4",
            1,
            "AssertionError",
        ),
        (f"--model-path {MODEL} --speculative-algorithm STANDALONE", 1, "OSError:"),
        (f"--model-path {MODEL} --speculative-acceptance 2", 2, "argument --speculative-acceptance"),
        (f"--model-path {MODEL} --tp 4 --dp 3 --enable-dp-attention", KILLED, "4 is not divisible by 3"),
        (
            f"--model-path {MODEL} --mem-fraction-static 0.01",
            KILLED,
            "ValueError: Loaded weights leave no GPU memory",
        ),
        (
            f"--model-path {MODEL} --max-total-tokens 8",
            KILLED,
            "Input length (12 tokens) exceeds the maximum allowed",
        ),
        (
            f"--model-path {MODEL} --mem-fraction-static 0.97 --chunked-prefill-size 16384",
            KILLED,
            "Capture cuda graph failed: CUDA out of memory. Tried to allocate",
        ),
        (
            f"--model-path {MODEL} --mem-fraction-static 0.99 --disable-cuda-graph",
            KILLED,
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate",
        ),
        ("--model-path llama-3.1-70b --gpu h100", KILLED, "torch.OutOfMemoryError: CUDA out of memory."),
    ],
)
def test_failing_starts_end_as_sglang_ends(flags: str, code: int, line: str) -> None:
    failed = start(*flags.split())
    assert failed.returncode == code
    assert line in failed.stderr
    assert ("Received sigquit from a child process" in failed.stderr) == (code == KILLED)
    assert "ready to roll" not in failed.stderr
    if code != 2:
        assert "SIMULATION" in failed.stderr.splitlines()[0]


def test_a_taken_port_ends_the_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        failed = start("--model-path", MODEL, "--port", str(taken.getsockname()[1]))
    assert failed.returncode == KILLED
    assert "[Errno 98]" in failed.stderr
    assert "address already in use" in failed.stderr


def test_flags_without_effect_are_named_in_the_log() -> None:
    failed = start(
        "--model-path", "nosuch", "--trust-remote-code", "--attention-backend", "fa3", "--log-level", "info"
    )
    for flag in ("--trust-remote-code", "--attention-backend", "--log-level"):
        assert f"{flag} is accepted and has no effect in the simulation." in failed.stderr


@pytest.mark.parametrize("fraction", ["0.5", "0.8", "0.9"])
@pytest.mark.parametrize("chunk", ["512", "2048", "4096"])
def test_moderate_memory_settings_live(fraction: str, chunk: str) -> None:
    assert (
        plan(
            f"--model-path {MODEL} --mem-fraction-static {fraction} --chunked-prefill-size {chunk}"
        ).kv_tokens
        > 0
    )


def test_defaults_are_sglangs() -> None:
    h100, l4 = plan(f"--model-path {MODEL}"), plan(f"--model-path {MODEL} --gpu l4")
    assert (h100.chunked_prefill_size, h100.cuda_graph_max_bs) == (8192, 256)
    assert (l4.chunked_prefill_size, l4.cuda_graph_max_bs) == (4096, 48)
    assert h100.mem_fraction_static == pytest.approx(0.836, abs=0.002)
    assert plan(f"--model-path {MODEL} --tp-size 4").cuda_graph_max_bs == 512
    assert plan(f"--model-path {MODEL} --chunked-prefill-size -1").chunked_prefill_size is None


def test_kv_capacity_matches_a_published_log() -> None:
    """SGLang's log of Llama-3.1-8B in bf16 on an H100 at 0.88: 444,500 tokens."""
    assert plan("--model-path llama-3.1-8b --mem-fraction-static 0.88").kv_tokens == pytest.approx(
        444_500, rel=0.001
    )


@given(
    st.floats(0, 1.2),
    st.sampled_from([512, 8192, 32768]),
    st.sampled_from(sorted(GPUS)),
    st.sampled_from([1, 2, 8]),
)
def test_more_memory_for_the_cache_means_more_tokens_or_death(
    fraction: float, chunk: int, gpu: str, tp: int
) -> None:
    flags = f"--model-path llama-3.1-8b --gpu {gpu} --tp {tp} --chunked-prefill-size {chunk}"
    try:
        tokens = plan(f"{flags} --mem-fraction-static {fraction}").kv_tokens
    except StartFailure as failure:
        assert "mem-fraction-static" in str(failure) or "out of memory" in str(failure)
        return
    try:
        fewer = plan(f"{flags} --mem-fraction-static {fraction * 0.99}").kv_tokens
    except StartFailure:  # so little that nothing is left after the weights
        return
    assert tokens > fewer
