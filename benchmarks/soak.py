"""A long study with a fault in every fifth trial, and what it leaves behind.

Two studies: one in virtual time (many trials, quickly), one over HTTP with engines that are really started.
In both every fifth trial meets a fault: its actor is killed with SIGKILL, or its configuration is one that
breaks the engine (no memory at start, a hang, a death under load, a log without end, children that hide).
At the end there must be as many rows as trials, and nothing else: no process, no port that listens, no file
descriptor of the driver, no temporary file, and no memory that grows with the trials.

    python benchmarks/soak.py
    python benchmarks/soak.py --virtual 500 --http 60 --json

Exit code 1 where something is left. It uses the faulty engine of the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tuner import run_study
from tuner.task import make_task

TESTS = Path(__file__).parents[1] / "tests"
PLUGINS = TESTS / "plugins"
sys.path[:0] = [str(TESTS), str(PLUGINS)]  # the faulty engine, and /proc as the tests read it
import processes

FAULTS = ["eats memory", "hangs under load", "dies under load", "floods its log", "leaves children"]
FAULTY = 5  # one trial in so many
ALONE = ["none"] * (FAULTY - 1)
MARKER = f"soak-{os.getpid()}"
RAYS = "open files left"  # one socket for each start of Ray in one process, however many trials
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


def document(trials: int, *, virtual: bool) -> dict[str, Any]:
    """A task of `trials` trials; those that break over HTTP have a `fault` among their flags."""
    parameters: dict[str, Any] = {
        "chunked-prefill-size": {"type": "integer", "low": 256, "high": 8192},
        "schedule-policy": ["lpm", "fcfs"],
    }
    if virtual:
        no_room = 0.02  # for a KV cache
        parameters["mem-fraction-static"] = [no_room, 0.7, 0.75, 0.8, 0.85]
    else:
        parameters["fault"] = [*(f"none {number}" for number in range(len(ALONE) * len(FAULTS))), *FAULTS]
    return {
        "task_name": "soak",
        "model": {"id_or_path": "llama-3.2-1b-instruct"},
        "base_runtime": "simulator" if virtual else "faulty",
        "engine": {"start_timeout": 60, "hang_timeout": 3},
        "parameters": parameters,
        "optimization": {"strategy": "random", "max_iterations": trials, "confirm": 0, "seed": 1},
        "benchmark": {
            "model_name": MARKER,
            "traffic_scenarios": ["D(64,16)"],
            "num_concurrency": [2],
            "max_time_per_iteration": 3.0 if not virtual else 30.0,
            "max_requests_per_iteration": 20 if virtual else 10_000,
        },
    }


# --- what is there -----------------------------------------------------------------------------------------


def listening() -> set[int]:
    """The ports of this machine on which something listens."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(each[1].partition(":")[2], 16) for each in lines if each[3] == "0A"}


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_KIB / 1024


class Chaos:
    """Kills a trial's actor every so often, `most` at the most; notes the ports that engines were given."""

    def __init__(self, every_s: float, most: int) -> None:
        self.killed, self.ports = 0, set[int]()
        self._every_s, self._most = every_s, most
        self._over, self._chance = threading.Event(), random.Random(1)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Chaos:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic() + self._every_s
        while not self._over.wait(0.1):
            for line in processes.with_marker(MARKER).values():
                self.ports |= {int(port) for port in re.findall(r"--port (\d+)", line)}
            if time.monotonic() < due or self.killed >= self._most:
                continue
            family = processes.below(os.getpid()).items()
            actors = [pid for pid, line in family if line.startswith("ray::EngineTrial")]
            if actors:
                os.kill(self._chance.choice(actors), signal.SIGKILL)
                self.killed += 1
                due = time.monotonic() + self._chance.uniform(0.5, 1.5) * self._every_s


# --- a study -----------------------------------------------------------------------------------------------


def soak(trials: int, *, virtual: bool, kill_every_s: float) -> dict[str, Any]:
    """Runs the study on a cluster of its own and counts what is left of both."""
    task = make_task(document(trials, virtual=virtual))
    memory: list[tuple[int, float]] = []
    files, began = open_files(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        with Chaos(kill_every_s, trials // (2 * FAULTY)) as chaos:
            outcome = run_study(
                task,
                results=folder,
                num_gpus=8,
                max_concurrent=2,
                virtual=virtual,
                watch=lambda seen: memory.append((seen.finished + seen.failed, resident_mib())),
            )
        took_s = time.monotonic() - began
        results = outcome.results
    rows = results.trials
    of_second_half = [mib for ended, mib in memory if ended >= trials / 2]
    return {
        "study": "virtual" if virtual else "http",
        "trials": trials,
        "seconds": took_s,
        "rows": len(rows),
        "numbers": int(rows["trial"].nunique()),
        "files skipped": len(results.skipped),
        "failed": dict(Counter(rows["failure_cause"].dropna())),
        "actors killed": chaos.killed,
        "lost, run again": int((rows["attempts"] > 1).sum()),
        "processes left": len(processes.with_marker(MARKER)) + len(processes.below(os.getpid())),
        "ports left": len(listening() & chaos.ports),
        "open files left": open_files() - files,
        "temporary files left": sum(1 for _ in Path(tempfile.gettempdir()).iterdir()),
        "driver MiB at half": of_second_half[0],
        "driver MiB at the end": of_second_half[-1],
    }


def sound(found: dict[str, Any]) -> bool:
    """Whether every trial has its row, and nothing is left."""
    left = [found[name] for name in found if name.endswith((" left", " skipped")) and name != RAYS]
    whole = found["rows"] == found["numbers"] >= found["trials"]
    return (
        whole
        and max(left) <= 0
        and found[RAYS] <= 1
        and found["driver MiB at the end"] < 1.1 * found["driver MiB at half"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--virtual", type=int, default=500, help="trials in virtual time")
    parser.add_argument("--http", type=int, default=60, help="trials over HTTP")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ["RAY_ADDRESS"] = ""  # a cluster of its own
    console, found = Console(stderr=options.json), []
    with tempfile.TemporaryDirectory() as home, console.status("warming up") as status:
        os.environ["XDG_DATA_HOME"] = home
        tempfile.tempdir = os.environ["TMPDIR"] = str(Path(home, "tmp"))
        Path(tempfile.tempdir).mkdir()
        soak(4, virtual=True, kill_every_s=1e9)  # what Ray opens once stays open
        if options.virtual:
            status.update("in virtual time")
            found.append(soak(options.virtual, virtual=True, kill_every_s=6.0))
        if options.http:
            status.update("over HTTP")
            found.append(soak(options.http, virtual=False, kill_every_s=40.0))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        table = Table("", *(each["study"] for each in found), title="A fault in every fifth trial")
        for name in found[0]:
            values = [each[name] for each in found]
            table.add_row(name, *(f"{each:.1f}" if isinstance(each, float) else str(each) for each in values))
        console.print(table)
    sys.exit(0 if all(map(sound, found)) else 1)


if __name__ == "__main__":
    main()
