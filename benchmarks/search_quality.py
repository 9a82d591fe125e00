"""How many trials a search needs, on measured surfaces: every strategy side by side.

A surface is a CSV or Parquet file: a column for each parameter, and `value`, which is maximised. Only the
rows that are listed exist. A strategy proposes through the same `StudySearcher` that a study uses; the answer
is looked up instead of measured. A hit is a value within 2 % of the surface's best.

    python benchmarks/search_quality.py --surfaces FOLDER
    python benchmarks/search_quality.py --surfaces FOLDER --seeds 5 --strategies ours tpe --json
    python benchmarks/search_quality.py --surfaces FOLDER --at-once 4
    python benchmarks/search_quality.py --surfaces FOLDER --invalid cost
    python benchmarks/search_quality.py --surfaces FOLDER --invalid half
    python benchmarks/search_quality.py --surfaces FOLDER --warm-start --strategies ours
    python benchmarks/search_quality.py --surfaces FOLDER --strategies ours random --by-surface
    python benchmarks/search_quality.py --surfaces FOLDER --noise 0.1
    python benchmarks/search_quality.py --surfaces FOLDER --noise 0.1 --early-end

`ours` is this project's sampler; `gp`, as the peer, the plain Gaussian process of the textbooks over the
listed configurations, which it knows even with --invalid cost. A surface that is never hit counts as
infinitely many trials (null in JSON). Invalid proposals are free unless --invalid cost: then each is a
failed trial, and the search knows of no list of what exists, but the product of all values. --invalid half:
as many configurations fail as work (see `halved`), and again it is not told which. --warm-start adds
`warm`: ours, with what it tried on each surface of the same parameters as a prior; only surfaces that have
such siblings are searched then. With --noise each measurement is off by that share (standard deviation),
and the leaders are measured six times more at the end; "answer" is how often the recommendation truly is
within 2 % (of `gp`, which has no repeats, the lowest that was seen). With --early-end a search ends where
little more is expected, as a study's does, and what it leaves over goes into repeats, where they are needed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # small matrices: threads only get in the way
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
from ray.tune.search import Searcher
from rich.console import Console
from rich.table import Table
from scipy.linalg import cho_solve
from scipy.optimize import minimize

import tuner.search
from tuner.capacity import gpu_flags_of
from tuner.engines import make_engine
from tuner.experience import NOTHING, Experience
from tuner.search.encoding import encode, optuna_integers
from tuner.search.surrogate import expected_improvement
from tuner.space import SearchSpace, Value, config_key
from tuner.task import Task, make_task

WARM = "warm"
STRATEGIES: dict[str, dict[str, Any]] = {
    "ours": {"sampler": "gp"},
    "tpe": {"sampler": "tpe"},
    "hyperopt": {"sampler": "hyperopt", "n_initial_random": 5},
    "random": {"strategy": "random"},
    "grid": {"strategy": "grid_search"},
    "gp": {},  # the plain peer, see PlainGp
}
HITS = (8, 10, 15, 20, 30)
REPEATS = 3  # of each finalist, where measurements are noisy
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
    """A search problem: the product of all values, and the loss of those configurations that exist.

    `failing` are the configurations that may be tried and do not work; None: whatever has no loss.
    """

    name: str
    task: Task
    losses: dict[str, float]
    failing: frozenset[str] | None = None

    @classmethod
    def read(cls, path: Path) -> Surface:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
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

    def space(self, invalid: str) -> SearchSpace:
        """What a search is told: what exists, what may be tried, or the product of all values."""
        if invalid == "cost":
            return self.task.space
        failing = sorted(self.failing or ())
        known = self.losses if invalid == "free" else {**self.losses, **dict.fromkeys(failing, FAILED_LOSS)}
        return ListedSpace(self.task.space.domains, (), known)


def halved(surface: Surface) -> Surface:
    """The surface among as many configurations that fail: drawn from those that are not listed.

    Where these are too few, the listed ones on one side of a plane fail too, as those do that need more
    memory than there is; the plane is drawn at random, and the best is sought among what is left.
    """
    rng = np.random.default_rng(zlib.crc32(surface.name.encode()))
    every = [config_key(config) for config in surface.task.space.grid()]
    unlisted = [key for key in every if key not in surface.losses]
    failing = {str(key) for key in rng.permutation(unlisted)[: len(surface.losses)]}
    listed = list(surface.losses)
    points = encode(surface.task.space, integers=optuna_integers).points([json.loads(key) for key in listed])
    needs = (points / points.max(axis=0)) @ rng.normal(size=points.shape[1])
    too_few = (len(listed) - len(failing)) // 2
    failing |= {listed[place] for place in np.argsort(-needs)[:too_few]}
    works = {key: loss for key, loss in surface.losses.items() if key not in failing}
    return replace(surface, losses=works, failing=frozenset(failing))


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _order(value: Any) -> tuple[bool, Any]:
    return (isinstance(value, str), value if value is not None else -math.inf)


@dataclass(frozen=True)
class Run:
    """What was tried and its losses, in order, the seconds that a suggestion took, the loss of the answer.

    `measurements` counts the repeats too.
    """

    keys: list[str]
    losses: list[float]
    suggest_s: float
    recommended: float
    measurements: int


def run(
    surface: Surface,
    options: dict[str, Any],
    seed: int,
    args: argparse.Namespace,
    known: Experience = NOTHING,
) -> Run:
    """One search of `args.trials` trials, `args.at_once` of them at a time, and its repeats under noise."""
    ends = {} if args.early_end else {"convergence": {"least_gain": None}}  # so all are as long
    repeats = {"confirm": REPEATS if args.noise else 0}
    optimization = {"max_iterations": args.trials, "baseline": False, **repeats, **ends, **options}
    task = make_task({"parameters": surface.task.model_dump()["parameters"], "optimization": optimization})
    if not options:
        searcher: Any = PlainGp(surface, task, seed)
    else:
        space = surface.space(args.invalid)
        sizes = gpu_flags_of(space, make_engine(task))
        searcher = tuner.search.make_searcher(task, seed=seed, space=space, known=known, gpu_flags=sizes)
        searcher.guard(lambda config: None, lambda suggestion, failure: FAILED_LOSS)
    rng = np.random.default_rng([seed, 1])
    keys: list[str] = []
    losses: list[float] = []
    once: dict[str, list[float]] = {}
    again: dict[str, list[float]] = {}
    pending: list[tuple[str, dict[str, Any]]] = []
    spent, number = 0.0, 0
    while True:
        began = time.perf_counter()
        found = searcher.suggest(str(number)) if len(pending) < args.at_once else None
        spent += time.perf_counter() - began
        if isinstance(found, dict):
            pending.append((str(number), found))
            number += 1
        elif pending:
            trial, suggestion = pending.pop(0)
            key = config_key(suggestion["flags"])
            loss = surface.losses.get(key, FAILED_LOSS)
            seen = loss + args.noise * rng.normal()
            if suggestion["kind"] == "search":
                keys.append(key)
                losses.append(loss)
            (again if suggestion["kind"] == "confirm" else once).setdefault(key, []).append(seen)
            searcher.on_trial_complete(trial, {"loss": seen})
        elif found == Searcher.FINISHED:
            judged = again or once  # as `tuner.analysis.confirmation` does, were all overrides alike
            answer = min(judged, key=lambda key: float(np.mean([*once[key], *again.get(key, ())])))
            loss = surface.losses.get(answer, FAILED_LOSS)
            return Run(keys, losses, spent / max(len(losses), 1), loss, number)


class PlainGp:
    """The textbook: Matérn 5/2 ARD, likeliest hyperparameters, expected improvement over the listed.

    Five random points first. It proposes what exists and nothing twice, so it needs no `StudySearcher`.
    """

    def __init__(self, surface: Surface, task: Task, seed: int) -> None:
        encoding = encode(task.space, integers=optuna_integers)
        self._configs = [json.loads(key) for key in surface.losses]
        points, unordered = encoding.points(self._configs), encoding.unordered
        columns = [
            np.eye(int(points[:, j].max()) + 1)[points[:, j].astype(int)]
            for j in range(len(unordered))
            if unordered[j]
        ]
        self._points = np.hstack([points[:, ~unordered], *columns])
        self._rng = np.random.default_rng(seed)
        self._left, self._asked = list(range(len(self._configs))), 0
        self._pending: dict[str, int] = {}
        self._seen: list[int] = []
        self._losses: list[float] = []
        self._budget = task.optimization.max_iterations or len(self._configs)

    def suggest(self, trial: str) -> Any:
        """The next configuration, as `StudySearcher` gives it."""
        if self._asked == self._budget or not self._left:
            return Searcher.FINISHED
        place = int(self._rng.integers(len(self._left))) if len(self._seen) < 5 else self._promising()
        self._asked += 1
        self._pending[trial] = self._left.pop(place)
        return {"kind": "search", "flags": self._configs[self._pending[trial]]}

    def on_trial_complete(self, trial: str, result: dict[str, float]) -> None:
        """Learns the loss."""
        self._seen.append(self._pending.pop(trial))
        self._losses.append(result["loss"])

    def _promising(self) -> int:
        losses = np.array(self._losses)
        scaled = (losses - losses.mean()) / (losses.std() or 1.0)
        mean, deviation = _textbook(self._points[self._seen], scaled, self._points[self._left])
        return int(np.argmax(expected_improvement(mean, deviation, float(scaled.min()))))


def _textbook(points: np.ndarray, scaled: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation at `others` by the likeliest Matérn 5/2 process (Rasmussen & Williams 2006)."""

    def kernel(one: np.ndarray, two: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        reach = np.sqrt(5 * (((one[:, None] - two[None]) / lengths) ** 2).sum(axis=-1))
        return (1 + reach + reach**2 / 3) * np.exp(-reach)

    def factored(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        covariance = np.exp(theta[0]) * kernel(points, points, np.exp(theta[2:]))
        factor = np.linalg.cholesky(covariance + (np.exp(theta[1]) + 1e-8) * np.eye(len(points)))
        return factor, cho_solve((factor, True), scaled)

    def cost(theta: np.ndarray) -> float:
        factor, weights = factored(theta)
        return float(0.5 * scaled @ weights + np.log(np.diag(factor)).sum())

    start = np.concatenate([[0.0, -6.0], np.zeros(points.shape[1])])
    bounds = [(-3.0, 3.0), (-12.0, 0.0), *[(-3.0, 3.0)] * points.shape[1]]
    theta = minimize(cost, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 15}).x
    factor, weights = factored(theta)
    cross = np.exp(theta[0]) * kernel(others, points, np.exp(theta[2:]))
    explained = (cross * cho_solve((factor, True), cross.T).T).sum(axis=1)
    return cross @ weights, np.sqrt(np.maximum(np.exp(theta[0]) - explained, 1e-12))


def warm(name: str, surfaces: Mapping[str, Surface], seed: int, args: argparse.Namespace) -> Run:
    """Our search of a surface, its siblings searched before."""
    options = STRATEGIES["ours"]
    own = surfaces[name].task.space
    priors = []
    for sibling in siblings(name, surfaces):
        earlier = run(surfaces[sibling], options, seed, args)
        tried = [(json.loads(key), loss) for key, loss in zip(earlier.keys, earlier.losses, strict=True)]
        priors.append([(config, loss) for config, loss in tried if own.contains(config)])
    return run(surfaces[name], options, seed, args, Experience([], [known for known in priors if known]))


def siblings(name: str, surfaces: Mapping[str, Surface]) -> list[str]:
    """The other surfaces of the same parameters."""
    own = list(surfaces[name].task.parameters)
    return [other for other in surfaces if other != name and list(surfaces[other].task.parameters) == own]


def summarise(runs: dict[str, list[Run]], surfaces: dict[str, Surface]) -> dict[str, float]:
    """Figures over all surfaces and seeds; a search that never hits counts as infinitely long."""
    firsts: dict[float, list[float]] = {0.02: [], 0.05: []}
    regrets, answers = [], []
    for name, own in runs.items():
        best = min(surfaces[name].losses.values())
        for one in own:
            for share, found in firsts.items():
                bound = surfaces[name].rank_of_hit(share)
                found.append(next((i + 1 for i, loss in enumerate(one.losses) if loss <= bound), math.inf))
            answers.append(one.recommended <= surfaces[name].rank_of_hit(0.02))
            so_far = np.minimum.accumulate(one.losses)
            regrets.append(float(np.mean(1 - np.exp(best - np.minimum(so_far, 50.0)))))
    two, five = np.array(firsts[0.02]), np.array(firsts[0.05])
    return {
        "median_trials_2pct": float(np.median(two)),
        "p90_trials_2pct": float(np.quantile(two, 0.9, method="higher")),
        "median_trials_5pct": float(np.median(five)),
        "p90_trials_5pct": float(np.quantile(five, 0.9, method="higher")),
        **{f"hit{n}": float((two <= n).mean()) for n in HITS},
        "mean_regret": float(np.mean(regrets)),
        "recommended_2pct": float(np.mean(answers)),
        "measurements": float(np.mean([one.measurements for own in runs.values() for one in own])),
        "suggest_ms": 1e3 * float(np.mean([one.suggest_s for own in runs.values() for one in own])),
    }


def _finite(figures: dict[str, dict[str, float]]) -> dict[str, Any]:
    """For JSON, which knows no infinity."""
    return {
        strategy: {name: value if math.isfinite(value) else None for name, value in own.items()}
        for strategy, own in figures.items()
    }


def table_of(figures: dict[str, dict[str, float]], title: str) -> Table:
    """The figures, a strategy to a row."""
    table = Table(title=title, title_justify="left")
    heads = [
        "strategy",
        "trials to 2 %",
        "p90",
        "to 5 %",
        *(f"hit {n}" for n in HITS),
        "regret",
        "ms",
        "answer",
        "runs",
    ]
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
            f"{100 * own['recommended_2pct']:.0f} %",
            f"{own['measurements']:.0f}",
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
    parser.add_argument("--surfaces", type=Path, required=True, help="folder of CSV or Parquet files")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--at-once", type=int, default=1, help="trials that run at the same time")
    parser.add_argument("--invalid", choices=["free", "cost", "half"], default="free", help="what fails")
    parser.add_argument("--noise", type=float, default=0.0, help="of a measurement, as a share")
    parser.add_argument("--early-end", action="store_true", help="a search ends where a study's would")
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    parser.add_argument("--warm-start", action="store_true", help="also ours, knowing what siblings told")
    parser.add_argument("--by-surface", action="store_true", help="a table for each surface too")
    parser.add_argument("--json", action="store_true", help="figures for machines")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    found = [*args.surfaces.glob("*.csv"), *args.surfaces.glob("*.parquet")]
    surfaces = {path.stem: Surface.read(path) for path in sorted(found)}
    if not surfaces:
        parser.error(f"--surfaces: no CSV or Parquet file in {args.surfaces}")
    if args.invalid == "half":
        surfaces = {name: halved(surface) for name, surface in surfaces.items()}
    if args.warm_start:
        surfaces = {name: surface for name, surface in surfaces.items() if siblings(name, surfaces)}
    figures: dict[str, dict[str, float]] = {}
    by_surface: dict[str, dict[str, dict[str, float]]] = {name: {} for name in surfaces}
    for strategy in [*args.strategies, *([WARM] if args.warm_start else [])]:
        runs: dict[str, list[Run]] = {}
        for name, surface in surfaces.items():
            progress(f"{strategy} on {name}")
            if strategy == WARM:
                runs[name] = [warm(name, surfaces, seed, args) for seed in range(args.seeds)]
            else:
                runs[name] = [run(surface, STRATEGIES[strategy], seed, args) for seed in range(args.seeds)]
        figures[strategy] = summarise(runs, surfaces)
        for name, own in runs.items():
            by_surface[name][strategy] = summarise({name: own}, surfaces)
    progress("")
    if args.json:
        finite = _finite(figures)
        if args.by_surface:
            finite["by_surface"] = {name: _finite(own) for name, own in by_surface.items()}
        print(json.dumps(finite, indent=2))
        return
    title = (
        f"{len(surfaces)} surfaces, {args.seeds} seeds, {args.at_once} at once, invalid rows {args.invalid}"
    )
    console = Console(width=120)
    console.print(table_of(figures, title))
    for name, own in by_surface.items() if args.by_surface else ():
        console.print(table_of(own, name))


if __name__ == "__main__":
    main()
