"""Runs a study again and again and kills its driver each time; `test_resume.py` starts it.

    python killed_drivers.py TASK RESULTS KILLS SEED

Each driver is forked from this process, so that it need not import Ray and Tune anew. After each kill
a line of JSON says when it came and what was on disk by then. The last driver lives to its end.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from tuner import load_task, run_study

LONGEST_S = 9.0  # of a driver's life: connecting takes two or three, a trial about one
AFTER_A_ROW_S = 0.5  # it lives no longer than this after its first, so that no machine is too quick


def on_disk(trials: Path) -> dict[str, str]:
    """Every trial that has a row, with a hash of it."""
    return {path.stem: hashlib.sha1(path.read_bytes()).hexdigest() for path in trials.glob("*.parquet")}


def driver(task: str, results: str) -> int:
    """A child that goes on with the study; its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = run_study(
                load_task(task), results=results, study="s", resume=True, max_concurrent=2
            ).exit_code
        finally:
            os._exit(code)
    return pid


def lived_s(trials: Path, chance: random.Random) -> float:
    """Waits until the driver is to be killed; how long that was, in seconds."""
    began, rows = time.monotonic(), len(list(trials.glob("*.parquet")))
    until = began + chance.uniform(0.2, LONGEST_S)
    after_a_row_s = chance.uniform(0.0, AFTER_A_ROW_S)
    while time.monotonic() < until:
        if len(list(trials.glob("*.parquet"))) > rows:
            until, rows = min(until, time.monotonic() + after_a_row_s), 10**9
        time.sleep(0.01)
    return time.monotonic() - began


def main(task: str, results: str, kills: int, seed: int) -> int:
    chance = random.Random(seed)
    trials = Path(results, "s", "trials")
    for number in range(kills):
        pid = driver(task, results)
        after_s = lived_s(trials, chance)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status)
        line = {
            "kill": number,
            "after_s": after_s,
            "killed": killed,
            "rows": on_disk(trials),
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    _, status = os.waitpid(driver(task, results), 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
