"""How often the repeats at a study's end find the best, on measured surfaces under noise.

The best configurations of a surface are measured once each, as if a search had found them all; then they are
measured again, as `tuner.search.repeats` has it, beside a peer: the two best of the first measurements three
times each, once and for all, judged by these repeats alone. The answer is right if it is truly within 2 %.

    python benchmarks/repeats.py --surfaces FOLDER
    python benchmarks/repeats.py --surfaces FOLDER --noise 0.03 --draws 500
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from search_quality import Surface

from tuner.search.repeats import due

MEASURED = 24  # of the best configurations, once each
ROUNDS, FINALISTS = 3, 2
SPARE = (0, 6, 16)  # further repeats that are left over, where they are needed

Measure = Callable[[str], float]


def ours(first: dict[str, float], measure: Measure, spare: int) -> tuple[str, int]:
    """The answer, by the mean of all runs of those that were repeated, and how many repeats it took."""
    runs, repeated = {key: [loss] for key, loss in first.items()}, Counter[str]()
    while key := due(list(first), runs, repeated, rounds=ROUNDS, baseline=None, spare=spare):
        repeated[key] += 1
        runs[key].append(measure(key))
    return min(repeated, key=lambda key: float(np.mean(runs[key]))), repeated.total()


def peer(first: dict[str, float], measure: Measure) -> tuple[str, int]:
    """The same of two finalists that are chosen once."""
    finalists = sorted(first, key=first.__getitem__)[:FINALISTS]
    means = {key: float(np.mean([measure(key) for _ in range(ROUNDS)])) for key in finalists}
    return min(means, key=means.__getitem__), ROUNDS * FINALISTS


def main() -> None:
    """Reads the command line, draws, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--surfaces", type=Path, required=True, help="folder of CSV or Parquet files")
    parser.add_argument("--noise", type=float, default=0.1, help="of a measurement, as a share")
    parser.add_argument("--draws", type=int, default=200, help="of each surface")
    args = parser.parse_args()
    found = sorted([*args.surfaces.glob("*.csv"), *args.surfaces.glob("*.parquet")])
    if not found:
        parser.error(f"--surfaces: no CSV or Parquet file in {args.surfaces}")
    rng = np.random.default_rng(0)
    ways = {"peer: two finalists, chosen once": peer}
    for spare in SPARE:
        name = f"ours, up to {ROUNDS * FINALISTS + spare} repeats"
        ways[name] = lambda first, measure, spare=spare: ours(first, measure, spare)
    right, repeats = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
    for surface in map(Surface.read, found):
        bound = surface.rank_of_hit(0.02)
        truth = dict(sorted(surface.losses.items(), key=lambda item: item[1])[:MEASURED])

        def measure(key: str, truth: dict[str, float] = truth) -> float:
            return truth[key] + args.noise * float(rng.normal())

        for _ in range(args.draws):
            first = {key: measure(key) for key in truth}
            for name, way in ways.items():
                answer, taken = way(first, measure)
                right[name] += truth[answer] <= bound
                repeats[name] += taken
    total = args.draws * len(found)
    table = Table(
        title=f"{len(found)} surfaces, {args.draws} draws of each, noise {args.noise:.0%}",
        title_justify="left",
    )
    for head in ("way", "right", "±", "wrong, against the peer", "repeats"):
        table.add_column(head, justify="left" if head == "way" else "right")
    wrong_of_peer = total - next(iter(right.values()))
    for name, count in right.items():
        share = count / total
        error = math.sqrt(share * (1 - share) / total)
        ratio = (total - count) / wrong_of_peer if wrong_of_peer else math.nan
        table.add_row(
            name, f"{share:.1%}", f"{error:.1%}", f"{ratio:.2f} times", f"{repeats[name] / total:.1f}"
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
