"""What a study costs beside its trials: wall time around them, and GPUs that wait.

Three tables. **Around a trial**: the same small trials (of the simulator, in virtual time: some hundredths of
a second of real work each) as a whole study through Ray Tune with search and results, as a plain loop over
Ray actors, and as plain Optuna, at 1, 4 and 8 at once. What a trial takes beyond its own work is

    (wall time from the first trial's start to the last one's end) / trials - work of one trial / at once,

the work being what it takes alone in the foreground; the start before the first trial stands in a column of
its own. **Between trials**: a study over HTTP with engines that are really started; how long a GPU waits
from the end of one trial to the start of the next. **Packing**: 200 trials of 1, 2, 4 and 8 GPUs in the
study's own order on 8 GPUs, by simulation, against the bound that no packing can beat (the GPU seconds
divided by 8), and against first come, first served.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --trials 100 --at-once 1 4 8 --json
    python benchmarks/overhead.py --only packing
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import ray
from ray.tune.search import Searcher
from rich.console import Console
from rich.table import Table

from tuner import run_study
from tuner.capacity import Capacity, Node
from tuner.cluster import cluster
from tuner.evaluate import evaluate
from tuner.rig import rig
from tuner.search import make_searcher
from tuner.suggestion import ELAPSED
from tuner.task import Task, make_task

GPUS = 8
GPU_TRIAL_S = 60.0  # a real trial, of which the wait between two is told as a share
SPACE = {
    "chunked-prefill-size": [256 * count for count in range(1, 33)],
    "mem-fraction-static": [0.7, 0.75, 0.8, 0.85],
    "schedule-policy": ["lpm", "fcfs"],
}


def small_task(trials: int, **benchmark: Any) -> Task:
    load = {"traffic_scenarios": ["D(64,8)"], "num_concurrency": [1], "max_requests_per_iteration": 10}
    return make_task(
        {
            "task_name": "overhead",
            "model": {"id_or_path": "llama-3.2-1b-instruct"},
            "parameters": SPACE,
            "optimization": {
                "max_iterations": trials,
                "confirm": 0,
                "early_stopping": False,
                "convergence": {"least_gain": None},
            },
            "benchmark": {**load, **benchmark},
        }
    )


def trial(task: Task, config: dict[str, Any]) -> float:
    """One trial in the foreground, in virtual time; its loss."""
    measured_by = rig(task, "simulator", virtual=True)
    *_, last = evaluate(
        task,
        config,
        engine=measured_by.engine,
        load=measured_by.load,
        clock=measured_by.clock,
        seed=0,
        gpu_ids=[],
        log_path=Path(os.devnull),
    )
    return last.score.loss


def configs(trials: int) -> list[dict[str, Any]]:
    chance = random.Random(0)
    return [{name: chance.choice(values) for name, values in SPACE.items()} for _ in range(trials)]


# --- around a trial --------------------------------------------------------------------------------------


def as_study(task: Task, at_once: int) -> tuple[float, float]:
    """Seconds before the first trial, and from its start to the last one's end."""
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        trials = run_study(
            task, engine="simulator", results=folder, seed=0, max_concurrent=at_once, virtual=True
        ).results.trials
    ends = trials["started_at"] + pd.to_timedelta(trials["duration_s"], unit="s")
    first = trials["started_at"].min()
    return first.timestamp() - began, (ends.max() - first).total_seconds()


def as_actors(task: Task, at_once: int) -> tuple[float, float]:
    """A plain loop over Ray actors, each taking the next configuration when it has ended one."""

    @ray.remote(num_cpus=0)
    class Worker:
        def ready(self) -> None:
            """Is up."""

        def trial(self, config: dict[str, Any]) -> float:
            return trial(task, config)

    began = time.monotonic()
    workers = [Worker.remote() for _ in range(at_once)]  # type: ignore[attr-defined]
    ray.get([worker.ready.remote() for worker in workers])
    first = time.monotonic()
    pool = ray.util.ActorPool(workers)
    list(pool.map_unordered(lambda worker, config: worker.trial.remote(config), configs(planned(task))))
    return first - began, time.monotonic() - first


def as_optuna(task: Task, at_once: int) -> tuple[float, float]:
    """Plain Optuna in this process, with threads where several are to run at once."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))

    def objective(asked: optuna.Trial) -> float:
        return trial(task, {name: asked.suggest_categorical(name, each) for name, each in SPACE.items()})

    first = time.monotonic()
    study.optimize(objective, n_trials=planned(task), n_jobs=at_once)
    return 0.0, time.monotonic() - first


def planned(task: Task) -> int:
    return task.optimization.max_iterations


WAYS: dict[str, Callable[[Task, int], tuple[float, float]]] = {
    "study": as_study,
    "ray actors": as_actors,
    "optuna": as_optuna,
}


def around(trials: int, at_once: Sequence[int]) -> list[dict[str, Any]]:
    task = small_task(trials)
    some = configs(min(trials, 20))
    trial(task, {})  # what is loaded once is no trial's work
    began = time.monotonic()
    for config in some:
        trial(task, config)
    work_s = (time.monotonic() - began) / len(some)
    rows = []
    for count in at_once:
        for name, way in WAYS.items():
            start_s, wall_s = way(task, count)
            rows.append(
                {
                    "way": name,
                    "at_once": count,
                    "trials": trials,
                    "work_s": work_s,
                    "start_s": start_s,
                    "wall_s_per_trial": wall_s / trials,
                    "beyond_work_s": wall_s / trials - work_s / count,
                }
            )
    return rows


# --- between trials --------------------------------------------------------------------------------------


def between(trials: int) -> dict[str, float]:
    """How long the GPU of a study over HTTP waits between two trials, the engine's end included."""
    task = small_task(trials, max_requests_per_iteration=20)
    with tempfile.TemporaryDirectory() as folder:
        rows = run_study(task, engine="simulator", results=folder, seed=0, max_concurrent=1).results.trials
    rows = rows.sort_values("started_at")
    ends = rows["started_at"] + pd.to_timedelta(rows["duration_s"], unit="s")
    waits = (rows["started_at"].iloc[1:].to_numpy() - ends.iloc[:-1].to_numpy()) / pd.Timedelta(1, "s")
    typical = statistics.median(map(float, waits))
    return {
        "trials": trials,
        "wait_s_median": typical,
        "wait_s_max": float(max(waits)),
        "share_of_60_s": typical / (GPU_TRIAL_S + typical),
    }


# --- packing -----------------------------------------------------------------------------------------------


def packed(durations: Sequence[float], seed: int, *, overtaking: bool) -> tuple[float, float]:
    """The seconds that the study's searcher needs for its trials on 8 GPUs, and their GPU seconds."""
    sizes = [1, 2, 4, 8]
    task = make_task(
        {
            "parameters": {"tp-size": sizes, "x": {"type": "integer", "low": 0, "high": 10_000}},
            "optimization": {
                "strategy": "random",
                "max_iterations": len(durations),
                "confirm": 0,
                "baseline": False,
            },
        }
    )
    gpus = lambda config: int(config["tp-size"])  # noqa: E731
    capacity = Capacity(gpus, nodes=lambda: [Node("n", "n", float(GPUS), 64.0)])
    capacity.fewest = 1 if overtaking else GPUS + 1
    searcher = make_searcher(task, seed=seed, capacity=capacity)
    clock, running, gpu_s = 0.0, [], 0.0
    for number in range(10**9):
        suggestion = searcher.suggest(f"{number}")
        if suggestion == Searcher.FINISHED:
            break
        if suggestion is not None:
            length = durations[suggestion["number"]]
            gpu_s += length * gpus(suggestion["flags"])
            heapq.heappush(running, (clock + length, f"{number}"))
            continue
        clock, ended = heapq.heappop(running)
        searcher.on_trial_complete(ended, {"loss": 1.0, ELAPSED: 1.0})
    return max([clock, *(end for end, _ in running)]), gpu_s


def packing(trials: int, spreads: Sequence[float], seeds: int) -> list[dict[str, float]]:
    rows = []
    for spread in spreads:
        shares: dict[bool, list[float]] = {True: [], False: []}
        for seed in range(seeds):
            chance = random.Random(seed)
            durations = [GPU_TRIAL_S * chance.lognormvariate(0.0, spread) for _ in range(trials)]
            for overtaking, found in shares.items():
                seconds, gpu_s = packed(durations, seed, overtaking=overtaking)
                found.append(gpu_s / GPUS / seconds)
        rows.append(
            {
                "spread": spread,
                "trials": trials,
                "studies": seeds,
                "ours": statistics.mean(shares[True]),
                "ours_least": min(shares[True]),
                "first_come": statistics.mean(shares[False]),
            }
        )
    return rows


# --- tables ----------------------------------------------------------------------------------------------


def tables(found: dict[str, Any]) -> list[Table]:
    shown = []
    if rows := found.get("around"):
        table = Table(
            title=f"Around a trial of {1e3 * rows[0]['work_s']:.0f} ms ({rows[0]['trials']} trials)"
        )
        for name in ("", "at once", "start s", "wall s/trial", "beyond its work s"):
            table.add_column(name, justify="left" if not name else "right")
        for row in rows:
            figures = (row["start_s"], row["wall_s_per_trial"], row["beyond_work_s"])
            table.add_row(row["way"], str(row["at_once"]), *(f"{figure:.3f}" for figure in figures))
        shown.append(table)
    if row := found.get("between"):
        table = Table(title=f"A GPU between two trials over HTTP ({row['trials']} trials, one at a time)")
        for name in ("median s", "longest s", f"share of a {GPU_TRIAL_S:g} s trial"):
            table.add_column(name, justify="right")
        share = f"{100 * row['share_of_60_s']:.1f} %"
        table.add_row(f"{row['wait_s_median']:.2f}", f"{row['wait_s_max']:.2f}", share)
        shown.append(table)
    if rows := found.get("packing"):
        table = Table(
            title=f"Packing {rows[0]['trials']} trials of 1, 2, 4, 8 GPUs on {GPUS} (share of the bound)"
        )
        for name in ("spread of durations", "ours", "ours, least", "first come, first served"):
            table.add_column(name, justify="right")
        for row in rows:
            shares = (row["ours"], row["ours_least"], row["first_come"])
            table.add_row(f"{row['spread']:g}", *(f"{100 * share:.1f} %" for share in shares))
        shown.append(table)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=60, help="of each study around a trial")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--only", choices=["around", "between", "packing"])
    parser.add_argument("--seeds", type=int, default=10, help="of the packing")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    options = parser.parse_args()
    console, found = Console(stderr=options.json), {}
    with console.status("packing") as status:
        if options.only in (None, "packing"):
            found["packing"] = packing(200, [0.05, 0.2, 0.5], options.seeds)
        if options.only != "packing":
            with cluster(GPUS):
                if options.only in (None, "around"):
                    status.update("around a trial")
                    found["around"] = around(options.trials, options.at_once)
                if options.only in (None, "between"):
                    status.update("between trials")
                    found["between"] = between(12)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for table in tables(found):
        console.print(table)


if __name__ == "__main__":
    main()
