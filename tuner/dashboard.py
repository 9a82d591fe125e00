"""What the Ray dashboard shows of a study: its metrics, its engines' logs, what each trial's process tries.

Ray exports the metrics to Prometheus with `ray_` before their names, every ten seconds;
docs/grafana.json draws them. Nothing here may end a trial: a dashboard is there to look at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import _raylet
from ray._private import worker as _worker
from ray.util.metrics import Gauge

from tuner.measure import Step
from tuner.progress import StudyProgress

# The study's, told by its driver; then a load level's, told by the trial's actor when the level is over.
STUDY_METRICS = {
    "autotuner_trials": "trials of the study, by state: running, waiting, finished, failed",
    "autotuner_trials_planned": "trials that the study will have at most",
    "autotuner_best_objective": "the best trial's objective, in its unit",
    "autotuner_elapsed_seconds": "seconds since the study began or was resumed",
}
LEVEL_METRICS = {
    "autotuner_requests_per_second": "requests that succeeded per second of the newest load level",
    "autotuner_output_tokens_per_second": "output tokens per second of the newest load level",
    "autotuner_ttft_p99_seconds": "99th percentile of the time to first token in the newest load level",
    "autotuner_tpot_p99_seconds": "99th percentile of the time per output token in the newest load level",
    "autotuner_success_share": "share of the requests that succeeded in the newest load level",
    "autotuner_load_cpu_share": "load client: share of one core that it used in the newest load level",
    "autotuner_load_lag_seconds": "load client: the longest that it answered nothing, newest load level",
    "autotuner_load_limited": "load client: 1 where it was the limit, not the engine, newest load level",
}
_NAME_CHARACTERS = 120


class StudyMetrics:
    """A study's figures, told by its driver."""

    def __init__(self, study: str) -> None:
        tags = {
            "autotuner_trials": ("study", "state"),
            "autotuner_best_objective": ("study", "objective", "unit"),
        }
        self._tags = {"study": study}
        self._gauges = {
            name: Gauge(name, text, tags.get(name, ("study",))) for name, text in STUDY_METRICS.items()
        }

    def show(self, progress: StudyProgress, objective: str) -> None:
        """Takes the newest progress; `objective` is the name of what `best` is best at."""
        for state in ("running", "waiting", "finished", "failed"):
            self._set("autotuner_trials", getattr(progress, state), state=state)
        self._set("autotuner_trials_planned", progress.planned)
        self._set("autotuner_elapsed_seconds", progress.elapsed_s)
        if best := progress.best:
            unit = str(best["objective_unit"])
            self._set("autotuner_best_objective", best["objective"], objective=objective, unit=unit)

    def _set(self, name: str, value: float | None, **tags: str) -> None:
        self._gauges[name].set(value, {**self._tags, **tags})


class LevelMetrics:
    """What the newest load level of one actor's trials showed, and how its load client fared."""

    def __init__(self, study: str) -> None:
        self._gauges = {name: Gauge(name, text, ("study",)) for name, text in LEVEL_METRICS.items()}
        for gauge in self._gauges.values():
            gauge.set_default_tags({"study": study})

    def show(self, step: Step) -> None:
        """Takes a load level that is over."""
        metrics, load = step.metrics, step.load
        values = {
            "autotuner_requests_per_second": metrics.requests_per_s,
            "autotuner_output_tokens_per_second": metrics.output_tok_s,
            "autotuner_ttft_p99_seconds": None if metrics.ttft is None else metrics.ttft.p99,
            "autotuner_tpot_p99_seconds": None if metrics.tpot is None else metrics.tpot.p99,
            "autotuner_success_share": metrics.success_rate,
            "autotuner_load_cpu_share": load.client_cpu,
            "autotuner_load_lag_seconds": load.client_lag_s,
            "autotuner_load_limited": float(step.client_limit is not None),
        }
        for name, value in values.items():
            self._gauges[name].set(value)


def trial_name(number: int, config: Mapping[str, Any], attempt: int = 1) -> str:
    """`trial-00007_tp-size=4_schedule-policy=lpm`: fit for the name of a file."""
    again = f"-{attempt}" if attempt > 1 else ""
    flags = [f"{flag}={value}" for flag, value in config.items()] or ["defaults"]
    words = [f"trial-{number:05d}{again}", *flags]
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", "_".join(words))[:_NAME_CHARACTERS]


def show_log(study: str, name: str, log: Path) -> None:
    """Links `log` into the dashboard's log view: in the folder `autotuner-<study>` of this node."""
    node = _worker.global_worker.node
    if node is None:  # a client's; what it writes lies elsewhere
        return
    with suppress(OSError):  # no right to write there, or no symbolic links
        folder = Path(node.get_logs_dir_path()) / f"autotuner-{study}"
        folder.mkdir(exist_ok=True)
        link = folder / f"{name}.log"
        link.unlink(missing_ok=True)
        link.symlink_to(log.absolute())


def title_process(text: str) -> None:
    """Adds `text` to this worker's process title, which the dashboard lists, until its task is over."""
    raylet: Any = _raylet  # it tells no types
    raylet.setproctitle(f"{raylet.getproctitle()} {text}")
