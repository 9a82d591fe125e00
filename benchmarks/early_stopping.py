"""What stopping trials that lose would have saved, and lost, on real runs that were cut short.

The file has a row for each run of a load level: `model` (a search problem), `n_gpus`, `throughput_tok_s`,
`ttft_p95_ms`, `itl_p95_ms`, and the same as seen after 10, 25 and 50 % of the run (`*_f10`, `*_f25`,
`*_f50`), with the requests that had ended by then (`n_ok_f10` ...). Each seed is a random order in which a
search tries 30 of a model's configurations; the rule is the study's own, `tuner.stopping.EarlyStopping`.

    python benchmarks/early_stopping.py --runs FILE
    python benchmarks/early_stopping.py --runs FILE --seeds 500 --json

A hit is a best within 2 % of the model's true best after all trials. A loser is a trial that is not the
best so far when it is seen to its end.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from tuner.stopping import EarlyStopping

SHARES = {0.1: "_f10", 0.25: "_f25", 0.5: "_f50", 1.0: ""}
LEAST_REQUESTS = 20  # that must have ended, before a run that is still going on is judged
ITL_LIMIT_MS, TTFT_LIMIT_MS = 100.0, 2000.0
WITHIN = 0.02


def loss_of(run: pd.Series[Any], suffix: str) -> float | None:
    """−log(tokens/s per GPU), penalised by ten times the share by which a limit is passed."""
    rate = run["throughput_tok_s" + suffix] / run["n_gpus"]
    over = sum(
        max(0.0, run[f"{name}_p95_ms{suffix}"] / limit - 1)
        for name, limit in (("itl", ITL_LIMIT_MS), ("ttft", TTFT_LIMIT_MS))
    )
    return None if not rate > 0 or math.isnan(over) else math.log1p(10 * over) - math.log(rate)


def curves(path: Path) -> dict[str, list[dict[float, float]]]:
    """By model, for every run its loss at each share at which enough requests had ended."""
    found: dict[str, list[dict[float, float]]] = {}
    for _, run in pd.read_csv(path).iterrows():
        curve = {}
        for share, suffix in SHARES.items():
            loss = loss_of(run, suffix)
            if loss is not None and (share == 1 or run[f"n_ok{suffix}"] >= LEAST_REQUESTS):
                curve[share] = loss
        if 1.0 in curve:
            found.setdefault(str(run["model"]), []).append(curve)
    return found


def search(runs: Sequence[dict[float, float]], order: Sequence[int]) -> dict[str, float]:
    """One search through `order`: losers, the time they took, and whether the best was hit."""
    rule, best = EarlyStopping(), math.inf
    losers, spent = 0, 0.0
    for number in order:
        curve = runs[number]
        stopped = next((share for share in sorted(curve) if rule.hopeless(share, curve[share])), 1.0)
        if curve[1.0] > best:
            losers, spent = losers + 1, spent + stopped
        if stopped == 1:
            rule.finished(curve)
        best = min(best, curve[1.0])
    bound = min(curve[1.0] for curve in runs) - math.log(1 - WITHIN)
    return {"losers": losers, "spent": spent, "hit": rule.best <= bound, "hit_without": best <= bound}


def figures(runs: Sequence[dict[float, float]], seeds: int, trials: int) -> dict[str, float]:
    """Over all seeds: the share of the losers' time that was saved, and hits with and without the rule."""
    each = [
        search(runs, np.random.default_rng(seed).permutation(len(runs))[:trials]) for seed in range(seeds)
    ]
    table = pd.DataFrame(each).astype(float)
    return {
        "runs": len(runs),
        "saved_of_losers": 1 - float(table["spent"].sum() / table["losers"].sum()),
        "hits": float(table["hit"].mean()),
        "hits_without": float(table["hit_without"].mean()),
    }


def main() -> None:
    """Reads the command line, replays, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="CSV of runs, see above")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="figures for machines")
    args = parser.parse_args()
    found = {model: figures(runs, args.seeds, args.trials) for model, runs in curves(args.runs).items()}
    if args.json:
        print(json.dumps(found, indent=2))
        return
    table = Table(title=f"{args.trials} trials in random order, {args.seeds} seeds", title_justify="left")
    for head in ("model", "runs", "losers' time saved", "hits", "hits without"):
        table.add_column(head, justify="left" if head == "model" else "right")
    for model, own in found.items():
        shares = (f"{100 * own[name]:.0f} %" for name in ("saved_of_losers", "hits", "hits_without"))
        table.add_row(model, f"{own['runs']:.0f}", *shares)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
