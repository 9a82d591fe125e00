"""Studies in processes of their own, on clusters whose nodes come and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tuner.results import ResultStore, StudyResults

PLUGINS = Path(__file__).parent / "plugins"
IMPATIENT = (
    "import sys, tuner.recorder; tuner.recorder.PATIENCE_S = 8.0\n"
    "from tuner.cli import main; main(sys.argv[1:])"
)


def with_plugins() -> str:
    return os.pathsep.join([str(PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])])


def document(marker: str, trials: int, level_s: float, **engine: Any) -> dict[str, Any]:
    return {
        "task_name": "nodes",
        "model": {"id_or_path": "llama-3.1-8b-instruct"},
        "base_runtime": "faulty",
        "engine": engine,
        "parameters": {"chunked-prefill-size": [256 * count for count in range(1, 17)]},
        "optimization": {
            "strategy": "random",
            "max_iterations": trials,
            "confirm": 0,
            "early_stopping": False,
        },
        "benchmark": {
            "model_name": marker,
            "traffic_scenarios": ["D(64,16)"],
            "num_concurrency": [1, 2],
            "max_time_per_iteration": level_s,
            "max_requests_per_iteration": 10_000,
        },
    }


class Study:
    """A study that runs on the cluster in a process of its own."""

    def __init__(self, address: str, folder: Path, task: dict[str, Any]) -> None:
        self.folder = folder
        (folder / "task.json").write_text(json.dumps(task))
        command = [sys.executable, "-c", IMPATIENT, "run", str(folder / "task.json"), "--resume"]
        env = {
            **os.environ,
            "RAY_ADDRESS": address,
            "PYTHONPATH": with_plugins(),
        }
        with (folder / "out").open("w") as out:
            self.process = subprocess.Popen(
                [*command, "--results", str(folder), "--study", "s"], stdout=out, stderr=out, env=env
            )

    def said(self) -> str:
        return (self.folder / "out").read_text()

    def log(self) -> str:
        [path] = Path(os.environ["XDG_DATA_HOME"], "autotuner", "logs").glob("task_s.log")
        return path.read_text()

    def rows(self) -> int:
        return len(list((self.folder / "s" / "trials").glob("*.parquet")))

    def until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, f"never: {what}"
            time.sleep(0.05)

    def ended(self, exit_code: int = 0) -> StudyResults:
        assert self.process.wait(timeout=240) == exit_code, self.said()
        return ResultStore(self.folder, "s").read()
