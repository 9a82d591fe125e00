"""How far the simulator over HTTP is from its own virtual time, and how much it can stream.

    python benchmarks/simulator_http.py [--concurrency 1 8 64] [--requests 20] [--json]

Both are trials of one task, through the same `evaluate`: a server process with the native load client beside
it, and the scheduler in this process. What differs is the host: sockets, timers and two Python programs. Of
`--repeats` the median is taken. Says so where the host was too slow for the simulated GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from tuner.evaluate import evaluate
from tuner.rig import rig
from tuner.task import Task, make_task

METRICS = ("output_tok_s", "tpot_ms", "ttft_ms", "latency_ms")


def task_of(args: argparse.Namespace, concurrency: int) -> Task:
    """A load level of `args.requests` requests for each stream, without noise."""
    return make_task(
        {
            "model": {"id_or_path": args.model},
            "engine": {"args": {"gpu": args.gpu, "noise": 0}},
            "benchmark": {
                "traffic_scenarios": [f"D({args.input},{args.output})"],
                "num_concurrency": [concurrency],
                "max_requests_per_iteration": args.requests * concurrency,
                "max_time_per_iteration": 120,
            },
        }
    )


def measured(task: Task, *, virtual: bool) -> dict[str, float]:
    """What a trial of the engine's defaults shows."""
    measured_by = rig(task, virtual=virtual)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "engine.log"
        *_, last = evaluate(
            task,
            {},
            engine=measured_by.engine,
            load=measured_by.load,
            clock=measured_by.clock,
            seed=0,
            gpu_ids=[],
            log_path=log,
        )
        late = "host too slow" in log.read_text(encoding="utf-8")
    if last.failure is not None or last.step is None:
        raise SystemExit(f"the trial failed: {last.failure}")
    metrics = last.step.metrics
    assert metrics.tpot is not None and metrics.ttft is not None and metrics.latency is not None
    return {
        "output_tok_s": metrics.output_tok_s,
        "tpot_ms": 1e3 * metrics.tpot.mean,
        "ttft_ms": 1e3 * metrics.ttft.mean,
        "latency_ms": 1e3 * metrics.latency.mean,
        "late": late,
    }


def compared(args: argparse.Namespace, concurrency: int) -> dict[str, Any]:
    """A row of the table."""
    task = task_of(args, concurrency)
    virtual = measured(task, virtual=True)
    runs = [measured(task, virtual=False) for _ in range(args.repeats)]
    row: dict[str, Any] = {"concurrency": concurrency}
    for name in METRICS:
        real = median(run[name] for run in runs)
        row |= {f"virtual_{name}": virtual[name], f"http_{name}": real}
        row[f"off_{name}"] = real / virtual[name] - 1
    return {**row, "host_too_slow": sum(run["late"] for run in runs)}


def main() -> int:
    """Prints the table; shares in JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--requests", type=int, default=20, help="for each stream")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="llama-3.2-1b-instruct")
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--input", type=int, default=200)
    parser.add_argument("--output", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    rows = [compared(args, concurrency) for concurrency in args.concurrency]
    if args.json:
        print(json.dumps({"cpus": os.cpu_count(), "rows": rows}, indent=2))
        return 0
    table = pd.DataFrame(rows).set_index("concurrency")
    for name in METRICS:
        table[f"off_{name}"] = table[f"off_{name}"].map("{:+.1%}".format)
    print(table.round(2).T.to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
