"""How exactly, and at what cost, a load generator measures a server with a known schedule.

The server (schedule_server.py) answers with the first token 50 ms after arrival and one more every 10 ms,
100 in all: TTFT is 50 ms, TPOT 10 ms, e2e 1,040 ms, the throughput 96 tok/s per stream. It says by how much
it missed its own deadlines; what is left of an error beyond that is the client's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from schedule_server import E2E_S, EACH_S, FIRST_S, INPUT_TOKENS, MODEL, TOKENS, ScheduleServer, running

from tuner.load.base import Target
from tuner.load.client import NativeClient
from tuner.metrics import summarise
from tuner.scenarios import parse_scenario
from tuner.workload import LoadLevel

EXAMPLES = """examples:
  python benchmarks/client_accuracy.py
  python benchmarks/client_accuracy.py --concurrency 64 --waves 10 --json
  python benchmarks/client_accuracy.py --tokenizer ./tokenizer     adds the rows of genai-bench
"""
SCENARIO = f"D({INPUT_TOKENS},{TOKENS})"

Pair = tuple[float, float]  # of (mean, 99th percentile)


@dataclass(frozen=True)
class Seen:
    """What a client measured: latencies and its own lag in s, throughput in tok/s."""

    ttft_s: Pair
    tpot_s: Pair
    e2e_s: Pair
    output_tok_s: float
    failed: int
    lag_s: float = 0.0


Measure = Callable[[ScheduleServer, int, int], Seen]


def native(server: ScheduleServer, concurrency: int, waves: int) -> Seen:
    """Measures with this project's own client."""
    return _native(
        server, LoadLevel(parse_scenario(SCENARIO), concurrency, concurrency * waves, 600.0, 0, seed=1)
    )


def native_at_rate(server: ScheduleServer, rate: int, seconds: int) -> Seen:
    """Measures with it in an open loop, after a warm-up of two seconds."""
    arrivals: dict[str, Any] = {"request_rate": float(rate), "arrivals": "constant"}
    level = LoadLevel(parse_scenario(SCENARIO), 4096, rate * seconds, 600.0, 2 * rate, seed=1, **arrivals)
    return _native(server, level)


def _native(server: ScheduleServer, level: LoadLevel) -> Seen:
    result = NativeClient().run(Target(server.url, MODEL, {}), level, healthy=lambda: True, timeout_s=600)
    seen = summarise(result.records, window_s=result.window_s, gpus=1, warmup=result.warmup)
    assert seen.ttft and seen.tpot and seen.latency
    return Seen(
        (seen.ttft.mean, seen.ttft.p99),
        (seen.tpot.mean, seen.tpot.p99),
        (seen.latency.mean, seen.latency.p99),
        seen.output_tok_s,
        seen.requests_failed,
        result.client_lag_s,
    )


def genai_bench(tokenizer: Path) -> Measure:
    """Measures with the genai-bench command, which wants the folder of a tokenizer."""

    def measure(server: ScheduleServer, concurrency: int, waves: int) -> Seen:
        options = {
            "api-backend": "sglang",
            "api-base": server.url,
            "api-key": "none",
            "api-model-name": MODEL,
            "model-tokenizer": tokenizer,
            "task": "text-to-text",
            "traffic-scenario": SCENARIO,
            "num-concurrency": concurrency,
            "max-time-per-run": 10,  # minutes
            "max-requests-per-run": concurrency * waves,
            "experiment-folder-name": "run",
        }
        with tempfile.TemporaryDirectory() as folder:
            options |= {"log-dir": folder, "experiment-base-dir": folder}
            command = ["genai-bench", "benchmark", *(f"--{key}={value}" for key, value in options.items())]
            environment = os.environ | {"ENABLE_UI": "false", "HF_HUB_OFFLINE": "1"}
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=900)
            [result] = Path(folder, "run").glob("D*.json")
            seen = json.loads(result.read_text())["aggregated_metrics"]
        ttft, tpot, e2e = (
            (seen["stats"][name]["mean"], seen["stats"][name]["p99"])
            for name in ("ttft", "tpot", "e2e_latency")
        )
        rate, failed = seen["mean_output_throughput_tokens_per_s"], seen["num_error_requests"]
        return Seen(ttft, tpot, e2e, rate, failed)

    return measure


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    client: str
    concurrency: int
    ttft_excess_ms: Pair
    tpot_error_percent: Pair
    e2e_error_percent: Pair
    throughput_error_percent: float
    failed: int
    cpu_ms_per_1000_tokens: float
    before_first_request_s: float
    after_last_token_s: float
    lag_ms: float
    server_late_ms: Pair


def compare(
    name: str, measure: Measure, server: ScheduleServer, load: int, waves: int, requests_s: float
) -> Row:
    """Lets a client measure the server, which serves `requests_s` a second; says by how much it is wrong."""
    cpu_s, started_s = cpu_seconds(), perf_counter()
    seen = measure(server, load, waves)
    ended_s, cpu_s = perf_counter(), cpu_seconds() - cpu_s
    truth = server.account()

    def percent(pair: Pair, right: float) -> Pair:
        return 100 * (pair[0] / right - 1), 100 * (pair[1] / right - 1)

    return Row(
        client=name,
        concurrency=load,
        ttft_excess_ms=(1e3 * (seen.ttft_s[0] - FIRST_S), 1e3 * (seen.ttft_s[1] - FIRST_S)),
        tpot_error_percent=percent(seen.tpot_s, EACH_S),
        e2e_error_percent=percent(seen.e2e_s, E2E_S),
        throughput_error_percent=100 * (seen.output_tok_s / (requests_s * TOKENS) - 1),
        failed=seen.failed,
        cpu_ms_per_1000_tokens=1e6 * cpu_s / truth.tokens,
        before_first_request_s=truth.first_arrival_s - started_s,
        after_last_token_s=ended_s - truth.last_token_s,
        lag_ms=1e3 * seen.lag_s,
        server_late_ms=(1e3 * truth.lateness_mean_s, 1e3 * truth.lateness_p99_s),
    )


def cpu_seconds() -> float:
    """CPU time of this process and of its finished children; the server still runs, and is not in it."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


HEADINGS = """\
                 TTFT excess ms   TPOT error %    e2e error %  tok/s         CPU ms/  before   after  lag late
client         C    mean    p99    mean    p99    mean    p99  err % failed   1k tok first s  last s   ms   ms
"""


def line(row: Row) -> str:
    """The row as the table shows it."""
    cells = [f"{row.client:11}{row.concurrency:5}"]
    for mean, p99 in (row.ttft_excess_ms, row.tpot_error_percent, row.e2e_error_percent):
        cells.append(f"{mean:8.2f}{p99:7.2f}")
    cells.append(f"{row.throughput_error_percent:7.2f}{row.failed:7}{row.cpu_ms_per_1000_tokens:9.1f}")
    cells.append(f"{row.before_first_request_s:8.2f}{row.after_last_token_s:8.2f}{row.lag_ms:5.1f}")
    cells.append(f"{row.server_late_ms[0]:5.2f}")
    return "".join(cells)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES
    )
    parser.add_argument(
        "--concurrency",
        type=int,
        nargs="+",
        default=[1, 4, 16, 64, 256],
        metavar="C",
        help="parallel streams",
    )
    parser.add_argument("--waves", type=int, default=4, help="requests per stream (%(default)s)")
    parser.add_argument(
        "--rate", type=int, nargs="*", default=[5, 50, 200], metavar="R", help="requests/s of an open loop"
    )
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer, which genai-bench needs")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    options = parser.parse_args()

    clients: dict[str, Measure] = {"native": native, "native, R/s": native_at_rate}
    left_out = ""
    if shutil.which("genai-bench") is None:
        left_out = "genai-bench: not installed"
    elif options.tokenizer is None:
        left_out = "genai-bench: installed, but left out for want of --tokenizer"
    else:
        clients["genai-bench"] = genai_bench(options.tokenizer)
    if not options.json:
        print(HEADINGS, end="")
    with running() as server:
        for name, measure in clients.items():
            for load in options.rate if measure is native_at_rate else options.concurrency:
                per_s = load if measure is native_at_rate else load / E2E_S
                try:
                    row = compare(name, measure, server, load, options.waves, per_s)
                except (subprocess.SubprocessError, ValueError) as failure:
                    print(f"{name} at {load}: {failure}", file=sys.stderr)
                    server.account()
                    continue
                print(json.dumps(asdict(row)) if options.json else line(row), flush=True)
    if left_out:
        print(left_out, file=sys.stderr if options.json else sys.stdout)


if __name__ == "__main__":
    main()
