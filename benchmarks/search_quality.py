"""How many trials a search needs, on measured surfaces: every strategy side by side.

A surface is a CSV file: a column for each parameter, and `value`, which is maximised. Only the rows that
are listed exist. A strategy proposes through the same `StudySearcher` that a study uses; the answer is
looked up instead of measured. A hit is a value within 2 % of the surface's best.

    python benchmarks/search_quality.py --surfaces FOLDER
    python benchmarks/search_quality.py --surfaces FOLDER --seeds 5 --strategies ours tpe --json
    python benchmarks/search_quality.py --surfaces FOLDER --at-once 4
    python benchmarks/search_quality.py --surfaces FOLDER --invalid cost

A surface that is never hit counts as infinitely many trials (null in JSON). Invalid proposals are free
unless --invalid cost: then each is a failed trial, and the search knows of no list of what exists.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # small matrices: threads only get in the way
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
from ray.tune.search import Searcher
from rich.console import Console
from rich.table import Table

import tuner.search
from tuner.space import SearchSpace, Value, config_key
from tuner.task import Task, make_task

STRATEGIES: dict[str, dict[str, Any]] = {
    "ours": {"sampler": "gp"},
    "tpe": {"sampler": "tpe"},
    "hyperopt": {"sampler": "hyperopt", "n_initial_random": 5},
    "random": {"strategy": "random"},
    "grid": {"strategy": "grid_search"},
}
HITS = (8, 10, 15, 20, 30)
FAILED_LOSS = 2200.0  # of a configuration that does not start, see tuner.objective


@dataclass(frozen=True)
class ListedSpace(SearchSpace):
    """A space of which only the listed configurations exist."""

    listed: Mapping[str, float] = field(default_factory=dict)

    def allows(self, config: Mapping[str, Value]) -> bool:
        return config_key(config) in self.listed

    def grid(self) -> Iterator[dict[str, Value]]:
        return (json.loads(key) for key in self.listed)


@dataclass(frozen=True)
class Surface:
    """A search problem: the product of all values, and the loss of those configurations that exist."""

    name: str
    task: Task
    losses: dict[str, float]

    @classmethod
    def read(cls, path: Path) -> Surface:
        table = pd.read_csv(path)
        names = [name for name in table.columns if name != "value" and table[name].nunique(dropna=False) > 1]
        parameters = {name: sorted(map(_plain, table[name].unique()), key=_order) for name in names}
        losses = {
            config_key({name: _plain(row[name]) for name in names}): -math.log(row["value"])
            for row in table.to_dict("records")
        }
        return cls(path.stem, make_task({"parameters": parameters}, path.name), losses)

    def rank_of_hit(self, share: float) -> float:
        """The loss from which a configuration is within `share` of the best."""
        return min(self.losses.values()) - math.log(1 - share)


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _order(value: Any) -> tuple[bool, Any]:
    return (isinstance(value, str), value if value is not None else -math.inf)


@dataclass(frozen=True)
class Run:
    """The losses in the order of the trials, and the seconds that suggestions took."""

    losses: list[float]
    suggest_s: float


def run(surface: Surface, options: dict[str, Any], seed: int, args: argparse.Namespace) -> Run:
    """One search of `args.trials` trials, `args.at_once` of them at a time."""
    ends = {"convergence": {"least_gain": None}}  # all searches are as long
    optimization = {"max_iterations": args.trials, "baseline": False, "confirm": 0, **ends, **options}
    task = make_task({"parameters": surface.task.model_dump()["parameters"], "optimization": optimization})
    searcher = _searcher(surface, task, seed, invalid_costs=args.invalid == "cost")
    losses: list[float] = []
    pending: list[tuple[str, float]] = []
    spent, number = 0.0, 0
    while True:
        began = time.perf_counter()
        found = searcher.suggest(str(number)) if len(pending) < args.at_once else None
        spent += time.perf_counter() - began
        if isinstance(found, dict):
            pending.append((str(number), surface.losses.get(config_key(found["flags"]), FAILED_LOSS)))
            number += 1
        elif pending:
            trial, loss = pending.pop(0)
            losses.append(loss)
            searcher.on_trial_complete(trial, {"loss": loss})
        elif found == Searcher.FINISHED:
            return Run(losses, spent / max(len(losses), 1))


def _searcher(surface: Surface, task: Task, seed: int, *, invalid_costs: bool) -> Any:
    """The study's own searcher, over the surface; invalid rows cost nothing, or a failed trial."""
    space = task.space if invalid_costs else ListedSpace(task.space.domains, (), surface.losses)
    searcher = tuner.search.make_searcher(task, seed=seed, space=space)
    searcher.guard(lambda config: None, lambda suggestion, failure: FAILED_LOSS)
    return searcher


def summarise(runs: dict[str, list[Run]], surfaces: dict[str, Surface]) -> dict[str, float]:
    """Figures over all surfaces and seeds; a search that never hits counts as infinitely long."""
    firsts: dict[float, list[float]] = {0.02: [], 0.05: []}
    regrets = []
    for name, own in runs.items():
        best = min(surfaces[name].losses.values())
        for one in own:
            for share, found in firsts.items():
                bound = surfaces[name].rank_of_hit(share)
                found.append(next((i + 1 for i, loss in enumerate(one.losses) if loss <= bound), math.inf))
            so_far = np.minimum.accumulate(one.losses)
            regrets.append(float(np.mean(1 - np.exp(best - np.minimum(so_far, 50.0)))))
    two, five = np.array(firsts[0.02]), np.array(firsts[0.05])
    return {
        "median_trials_2pct": float(np.median(two)),
        "p90_trials_2pct": float(np.quantile(two, 0.9, method="higher")),
        "median_trials_5pct": float(np.median(five)),
        **{f"hit{n}": float((two <= n).mean()) for n in HITS},
        "mean_regret": float(np.mean(regrets)),
        "suggest_ms": 1e3 * float(np.mean([one.suggest_s for own in runs.values() for one in own])),
    }


def table_of(figures: dict[str, dict[str, float]], title: str) -> Table:
    """The figures, a strategy to a row."""
    table = Table(title=title, title_justify="left")
    heads = ["strategy", "trials to 2 %", "p90", "to 5 %", *(f"hit {n}" for n in HITS), "regret", "ms"]
    for head in heads:
        table.add_column(head, justify="left" if head == "strategy" else "right")
    for name, own in figures.items():
        trials = (own["median_trials_2pct"], own["p90_trials_2pct"], own["median_trials_5pct"])
        table.add_row(
            name,
            *(f"{value:g}" for value in trials),
            *(f"{100 * own[f'hit{n}']:.0f} %" for n in HITS),
            f"{100 * own['mean_regret']:.1f} %",
            f"{own['suggest_ms']:.0f}",
        )
    return table


def progress(text: str) -> None:
    """One line that is written over, where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r{text:<78}\r", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Reads the command line, searches, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--surfaces", type=Path, required=True, help="folder of CSV files")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--at-once", type=int, default=1, help="trials that run at the same time")
    parser.add_argument("--invalid", choices=["free", "cost"], default="free", help="what is not listed")
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    parser.add_argument("--json", action="store_true", help="figures for machines")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    surfaces = {path.stem: Surface.read(path) for path in sorted(args.surfaces.glob("*.csv"))}
    if not surfaces:
        parser.error(f"--surfaces: no CSV file in {args.surfaces}")
    figures: dict[str, dict[str, float]] = {}
    for strategy in args.strategies:
        runs: dict[str, list[Run]] = {}
        for name, surface in surfaces.items():
            progress(f"{strategy} on {name}")
            options = STRATEGIES[strategy]
            runs[name] = [run(surface, options, seed, args) for seed in range(args.seeds)]
        figures[strategy] = summarise(runs, surfaces)
    progress("")
    if args.json:
        finite = {
            strategy: {name: value if math.isfinite(value) else None for name, value in own.items()}
            for strategy, own in figures.items()
        }
        print(json.dumps(finite, indent=2))
        return
    title = (
        f"{len(surfaces)} surfaces, {args.seeds} seeds, {args.at_once} at once, invalid rows {args.invalid}"
    )
    Console(width=110).print(table_of(figures, title))


if __name__ == "__main__":
    main()
