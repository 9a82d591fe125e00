"""A server that runs already, measured with a task's load: no engine is started, and no Ray.

What is measured once, here or by `verify`, is stored as a study of one trial, of kind `bench`, so that
whatever reads results reads this as well.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuner import __version__
from tuner.engines.attached import Attached
from tuner.engines.base import Config, Engine
from tuner.evaluate import Report, evaluate
from tuner.load import LOAD_GENERATORS
from tuner.measure import Step
from tuner.results import LATENCIES, SCHEMA_VERSION, STATISTICS, ResultStore, default_root
from tuner.rows import TrialInfo, record, step_row, this_node
from tuner.task import Task

BENCH = "bench"
_NAMES = {"latency": "e2e_s"}  # as the field calls it; the task file says latency


@dataclass(frozen=True)
class Kept:
    """What one trial showed: its row of `trials`, its finished load levels, and where they are kept."""

    trial: dict[str, Any]
    steps: tuple[Step, ...]
    location: str
    max_loads: Mapping[str, float]

    def levels(self) -> list[dict[str, Any]]:
        """The load levels for machines."""
        return [level_document(step_row(step)) for step in self.steps]


@dataclass(frozen=True)
class BenchOutcome:
    """What `server` showed."""

    server: Attached
    kept: Kept

    @property
    def trial(self) -> dict[str, Any]:
        """The row of `trials`."""
        return self.kept.trial

    @property
    def exit_code(self) -> int:
        """0 measured; 3 a promise was not kept; 4 a load level could not be measured."""
        if self.trial["failure_cause"]:
            return 4
        return 3 if self.trial["slo_met"] is False else 0

    def document(self) -> dict[str, Any]:
        """For machines: what was measured, on which server, level by level. Seconds, tokens, shares."""
        said = ("engine_version", "simulated", "slo_met", "slo_worst", "max_load")
        why = ("failure_cause", "failure_detail")
        return {
            "base_url": self.server.base_url,
            "model": self.server.model,
            **{name: self.trial[name] for name in (*said, *why)},
            "max_loads": dict(self.kept.max_loads),
            "results": self.kept.location,
            "levels": self.kept.levels(),
        }


def level_document(row: dict[str, Any]) -> dict[str, Any]:
    """Columns of `steps`, the statistics of a latency in one object: `ttft_s`, `tpot_s`, `itl_s`, `e2e_s`."""
    figures = dict(row)
    latencies = {
        _NAMES.get(name, f"{name}_s"): {
            **{statistic: figures.pop(f"{name}_{statistic}_s") for statistic in (*STATISTICS, "ci95")},
            "n": figures.pop(f"{name}_n"),
        }
        for name in LATENCIES
    }
    return {**figures, "errors": json.loads(row["errors"]), **latencies}


def bench(
    task: Task,
    server: Attached,
    *,
    seed: int,
    results: str | Path | None = None,
    source: str = "",
    watch: Callable[[Report], None] = lambda _: None,
) -> BenchOutcome:
    """Puts every load level of `task` on `server` and stores what it showed.

    `watch` is called after each level. A server that fails under load is an outcome, not an exception.
    """
    about = {"base_url": server.base_url, "source": source}
    kept = measured(task, server, {}, BENCH, about=about, seed=seed, results=results, watch=watch)
    return BenchOutcome(server, kept)


def measured(
    task: Task,
    engine: Engine,
    config: Config,
    name: str,
    *,
    about: Mapping[str, Any],
    seed: int,
    results: str | Path | None = None,
    log_path: Path = Path(),
    watch: Callable[[Report], None] = lambda _: None,
) -> Kept:
    """One trial in the foreground, kept as a study called `name` and the time; see `bench`."""
    began, clock = datetime.now(UTC), time.monotonic()
    store = ResultStore(results or default_root(), f"{name}-{began:%Y%m%d-%H%M%S-%f}")
    store.require_new()
    steps: list[Step] = []
    reports = evaluate(
        task,
        config,
        engine=engine,
        load=LOAD_GENERATORS[task.benchmark.tool],
        seed=seed,
        gpu_ids=[],
        log_path=log_path,
    )
    with closing(reports):  # type: ignore[type-var]  # evaluate is a generator
        for report in reports:
            if report.step is not None:
                steps.append(report.step)
            watch(report)
    info = TrialInfo(
        number=0,
        kind=BENCH,
        config=config,
        gpu_ids=[],
        started_at=began,
        duration_s=time.monotonic() - clock,
        node=this_node(),
        log_path="" if log_path == Path() else str(log_path),
    )
    store.create({**_about(task, engine, store.study, seed, began), **about})
    row = record(store, task, engine, info, report, steps)
    return Kept(row, tuple(steps), store.location, report.max_loads)


def _about(task: Task, engine: Engine, study: str, seed: int, began: datetime) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "tuner_version": __version__,
        "study": study,
        "kind": BENCH,
        "task": task.model_dump(mode="json", exclude_unset=True),
        "engine": engine.name,
        "engine_version": engine.version(),
        "simulated": engine.simulated,
        "seed": seed,
        "started_at": began.isoformat(),
        "planned_trials": 1,
    }
