"""Load clients that measure the schedule server: this project's own, and others where they are installed.

Each is run as its users run it, with its own way of warming up, on one worker process where it takes a
number of them (the machine has few cores, and the server needs one).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from schedule_server import INPUT_TOKENS, MODEL, TOKENS, Pair

from tuner.load.base import Target
from tuner.load.client import NativeClient
from tuner.load.limit import client_limit
from tuner.metrics import summarise
from tuner.scenarios import parse_scenario
from tuner.workload import LoadLevel

SCENARIO = f"D({INPUT_TOKENS},{TOKENS})"
STEERING = (("latency", "mean"), ("ttft", "mean"), ("ttft", "p99"), ("tpot", "mean"))
_LIMIT_S = 900.0  # for one run of another client
_LOOK_S = 0.2  # between two looks at its CPU time
_TICKS_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Seen:
    """What a client measured: latencies and its own lag in s, throughput in tok/s.

    `cpu` has pairs of a time (`perf_counter`) and the CPU time used until then, in s. `limit` says in what
    way the client was the limit, if it tells that.
    """

    ttft_s: Pair
    tpot_s: Pair
    e2e_s: Pair
    output_tok_s: float
    failed: int
    cpu: tuple[tuple[float, float], ...] = ()
    lag_s: float = 0.0
    limit: str | None = None

    def cpu_until_s(self, at_s: float) -> float:
        """CPU time used until then."""
        times, used = zip(*self.cpu, strict=True)
        return float(np.interp(at_s, times, used))


class Client(ABC):
    """One that measures the server at a load: streams at once, unless it `keeps_rate`."""

    name: str
    keeps_rate = False

    @abstractmethod
    def measure(self, url: str, load: int, waves: int) -> Seen:
        """Puts `waves` requests for each stream on the server (or so many seconds of a rate)."""


class Native(Client):
    """This project's own client, in this process, with a warm-up of one request for each stream."""

    name = "native"

    def measure(self, url: str, load: int, waves: int) -> Seen:
        return self._put(url, LoadLevel(parse_scenario(SCENARIO), load, load * waves, 600.0, load, seed=1))

    def _put(self, url: str, level: LoadLevel) -> Seen:
        began = (perf_counter(), time.process_time())
        result = NativeClient().run(Target(url, MODEL, {}), level, healthy=lambda: True, timeout_s=600)
        ended = (perf_counter(), time.process_time())
        seen = summarise(result.records, window_s=result.window_s, gpus=1, warmup=result.warmup)
        assert seen.ttft and seen.tpot and seen.latency
        return Seen(
            (seen.ttft.mean, seen.ttft.p99),
            (seen.tpot.mean, seen.tpot.p99),
            (seen.latency.mean, seen.latency.p99),
            seen.output_tok_s,
            seen.requests_failed,
            (began, ended),
            result.client_lag_s,
            client_limit(result, seen, STEERING),
        )


class NativeAtRate(Native):
    """The same in an open loop, after a warm-up of two seconds."""

    name = "native, R/s"
    keeps_rate = True

    def measure(self, url: str, load: int, waves: int) -> Seen:
        options: dict[str, Any] = {"request_rate": float(load), "arrivals": "constant"}
        scenario = parse_scenario(SCENARIO)
        return self._put(url, LoadLevel(scenario, 4096, load * waves, 600.0, 2 * load, seed=1, **options))


class Other(Client):
    """A client that is a command: run for each load, its results read from a folder."""

    variable: str  # of the environment, that names it where it is not on the PATH
    environment: ClassVar[dict[str, str]] = {}

    def __init__(self, tokenizer: Path) -> None:
        self.tokenizer = tokenizer.resolve()

    @classmethod
    def program(cls) -> str | None:
        """Where it is; None where it is not installed."""
        return os.environ.get(cls.variable) or shutil.which(cls.name)

    @abstractmethod
    def words(self, url: str, streams: int, requests: int, folder: Path) -> list[str]:
        """What follows the program on its command line."""

    @abstractmethod
    def read(self, folder: Path, requests: int) -> Seen:
        """Its results."""

    def measure(self, url: str, load: int, waves: int) -> Seen:
        with tempfile.TemporaryDirectory() as name:
            folder, program = Path(name), self.program()
            assert program is not None
            command = [program, *self.words(url, load, load * waves, folder)]
            cpu = run(command, os.environ | self.environment, folder)
            seen = self.read(folder, load * waves)
        return Seen(seen.ttft_s, seen.tpot_s, seen.e2e_s, seen.output_tok_s, seen.failed, tuple(cpu))


class GenaiBench(Other):
    name, variable = "genai-bench", "GENAI_BENCH"
    environment: ClassVar = {"ENABLE_UI": "false", "HF_HUB_OFFLINE": "1"}

    def words(self, url: str, streams: int, requests: int, folder: Path) -> list[str]:
        options = {
            "api-backend": "sglang",
            "api-base": url,
            "api-key": "none",
            "api-model-name": MODEL,
            "model-tokenizer": self.tokenizer,
            "task": "text-to-text",
            "traffic-scenario": SCENARIO,
            "num-concurrency": streams,
            "max-time-per-run": 10,  # minutes
            "max-requests-per-run": requests,
            "experiment-folder-name": "run",
            "log-dir": folder,
            "experiment-base-dir": folder,
        }
        return ["benchmark", *(f"--{key}={value}" for key, value in options.items())]

    def read(self, folder: Path, requests: int) -> Seen:
        [result] = (folder / "run").glob("D*.json")
        seen = json.loads(result.read_text())["aggregated_metrics"]
        ttft, tpot, e2e = (
            (seen["stats"][name]["mean"], seen["stats"][name]["p99"])
            for name in ("ttft", "tpot", "e2e_latency")
        )
        rate, failed = seen["mean_output_throughput_tokens_per_s"], seen["num_error_requests"]
        return Seen(ttft, tpot, e2e, rate, failed)


class Guidellm(Other):
    """Its time_per_output_token counts the first token; its inter_token_latency is TPOT."""

    name, variable = "guidellm", "GUIDELLM"
    environment: ClassVar = {"GUIDELLM__MAX_WORKER_PROCESSES": "1", "HF_HUB_OFFLINE": "1"}

    def words(self, url: str, streams: int, requests: int, folder: Path) -> list[str]:
        options = {
            "backend": f"kind=openai_http,target={url},model={MODEL},request_format=/v1/completions",
            "profile": f"kind=concurrent,streams={streams}",
            "constraint": f"kind=max_requests,count={requests}",
            "tokenizer": f"kind=hf_auto,model={self.tokenizer}",
            "data": f"kind=synthetic_text,prompt_tokens={INPUT_TOKENS},output_tokens={TOKENS}",
            "output": f"kind=json,path={folder / 'results.json'}",
        }
        return ["run", "--disable-console", *(f"--{key}={value}" for key, value in options.items())]

    def read(self, folder: Path, requests: int) -> Seen:
        [benchmark] = json.loads((folder / "results.json").read_text())["benchmarks"]
        seen = benchmark["metrics"]

        def pair(name: str, unit_s: float) -> Pair:
            told = seen[name]["successful"]
            return told["mean"] * unit_s, told["percentiles"]["p99"] * unit_s

        return Seen(
            pair("time_to_first_token_ms", 1e-3),
            pair("inter_token_latency_ms", 1e-3),
            pair("request_latency", 1.0),
            seen["output_tokens_per_second"]["successful"]["mean"],
            requests - seen["request_totals"]["successful"],
        )


class Aiperf(Other):
    """Must not be told that it is offline: it then takes the tokenizer's folder for a name on the hub."""

    name, variable = "aiperf", "AIPERF"

    def words(self, url: str, streams: int, requests: int, folder: Path) -> list[str]:
        options = {
            "model": MODEL,
            "url": url,
            "endpoint-type": "completions",
            "tokenizer": self.tokenizer,
            "concurrency": streams,
            "request-count": requests,
            "warmup-request-count": streams,
            "prompt-input-tokens-mean": INPUT_TOKENS,
            "prompt-output-tokens-mean": TOKENS,
            "extra-inputs": "ignore_eos:true",
            "workers-max": 1,
            "record-processor-service-count": 1,
            "ui-type": "none",
            "output-artifact-dir": folder / "run",
        }
        flags = ("streaming", "use-server-token-count", "no-gpu-telemetry", "no-server-metrics")
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        return ["profile", *words, *(f"--{flag}" for flag in flags)]

    def read(self, folder: Path, requests: int) -> Seen:
        seen = json.loads((folder / "run" / "profile_export_aiperf.json").read_text())

        def pair(name: str) -> Pair:
            return seen[name]["avg"] * 1e-3, seen[name]["p99"] * 1e-3  # from ms

        return Seen(
            pair("time_to_first_token"),
            pair("inter_token_latency"),
            pair("request_latency"),
            seen["output_token_throughput"]["avg"],
            requests - round(seen["request_count"]["avg"]),
        )


_RUST_CLIENT = """
import glob, importlib.util as load, sys
[folder] = load.find_spec("sglang").submodule_search_locations
[library] = glob.glob(folder + "/srt/rust_extensions/_bench*.so")
spec = load.spec_from_file_location("_bench", library)
client = load.module_from_spec(spec)
spec.loader.exec_module(client)
client.run_argv(["sglang-bench", *sys.argv[1:]])
"""


class SglangRust(Other):
    """The Rust client that SGLang's wheel has since 0.5.23; `SGLANG_PYTHON` is an interpreter with SGLang.

    It is loaded without SGLang itself, which takes seconds and wants more libraries.
    """

    name, variable = "sglang-rust", "SGLANG_PYTHON"

    def words(self, url: str, streams: int, requests: int, folder: Path) -> list[str]:
        options = {
            "backend": "sglang-oai",
            "base-url": url,
            "model": MODEL,
            "tokenizer": self.tokenizer,
            "dataset-name": "random-ids",
            "num-prompts": requests,
            "random-input-len": INPUT_TOKENS,
            "random-output-len": TOKENS,
            "random-range-ratio": 1.0,
            "max-concurrency": streams,
            "output-file": folder / "results.jsonl",
        }
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        return ["-c", _RUST_CLIENT, "--disable-tqdm", *words]

    def read(self, folder: Path, requests: int) -> Seen:
        seen = json.loads((folder / "results.jsonl").read_text())
        ttft, tpot, e2e = (
            (seen[f"mean_{name}_ms"] * 1e-3, seen[f"p99_{name}_ms"] * 1e-3)
            for name in ("ttft", "tpot", "e2e_latency")
        )
        return Seen(ttft, tpot, e2e, seen["output_throughput"], requests - seen["completed"])


OTHERS: tuple[type[Other], ...] = (GenaiBench, Guidellm, Aiperf, SglangRust)


def run(command: list[str], environment: Mapping[str, str], folder: Path) -> list[tuple[float, float]]:
    """Runs it to its end, in `folder`; when, and how much CPU its processes had used by then.

    CalledProcessError, with the end of what it wrote, where it fails; TimeoutExpired after `_LIMIT_S`.
    """
    output, began_s = folder / "output.log", perf_counter()
    with output.open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    cpu = [(began_s, 0.0)]
    try:
        while process.poll() is None:
            if perf_counter() - began_s > _LIMIT_S:
                raise subprocess.TimeoutExpired(command, _LIMIT_S)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_S)
            used_s = _session_cpu_s(process.pid)
            cpu.append((perf_counter(), max(used_s, cpu[-1][1])))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output.read_bytes()[-2000:])
    return cpu


def _session_cpu_s(session: int) -> float:
    """CPU time of all processes of a session, and of those that they waited for."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += sum(map(int, fields[11:15]))
    return total * _TICKS_S
