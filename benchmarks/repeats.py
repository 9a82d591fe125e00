"""What the repeats at a study's end are worth under noise: the right answer, and gains that are proved.

**The right answer**, on measured surfaces: the best configurations are measured once each, as if a search had
found them all; then they are measured again, as `tuner.search.repeats` has it, beside a peer: the two best of
the first measurements three times each, once and for all, judged by these repeats alone. The answer is right
if it is truly within 2 %. What measurements can tell at the most, not knowing what is like what, an oracle
shows: it names the best and the best of the wrong ones, and leaves to six repeats only which is which, or to
all 36 measurements of a study, as if it needed no search.

**Gains**: of made-up studies of equal configurations, one of which may be truly better, it is told how many
call a gain over the defaults sure, with the rounds of a study alone and with trials that are left over.

    python benchmarks/repeats.py --surfaces FOLDER
    python benchmarks/repeats.py --surfaces FOLDER --noise 0.03 --draws 500
    python benchmarks/repeats.py --draws 1000    # the gains alone
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from search_quality import Surface

from tuner.analysis.answer import CONFIDENCE
from tuner.analysis.confirmation import EQUAL, SURE_AT_EACH_LOOK, half_width, pooled
from tuner.plan import FINALISTS, planned_repeats
from tuner.search.repeats import due

MEASURED = 24  # of the best configurations, and the best of the wrong ones, once each
ROUNDS = 3
ORACLES = {"an oracle names the two, 6 repeats": 6, "the same, and all 36 measurements are of the two": 34}
SPARE = (0, 6, 16)  # further repeats that are left over, where they are needed
BASELINE, STUDY_ROUNDS = "baseline", 2

Measure = Callable[[str], float]


def ours(first: dict[str, float], measure: Measure, spare: int) -> tuple[str, int]:
    """The answer, by the mean of all runs of those that were repeated, and how many repeats it took."""
    runs, repeated = {key: [loss] for key, loss in first.items()}, Counter[str]()
    while key := due(list(first), runs, {}, repeated, rounds=ROUNDS, baseline=None, spare=spare):
        repeated[key] += 1
        runs[key].append(measure(key))
    return min(repeated, key=lambda key: float(np.mean(runs[key]))), repeated.total()


def peer(first: dict[str, float], measure: Measure) -> tuple[str, int]:
    """The same of two finalists that are chosen once."""
    finalists = sorted(first, key=first.__getitem__)[:FINALISTS]
    means = {key: float(np.mean([measure(key) for _ in range(ROUNDS)])) for key in finalists}
    return min(means, key=means.__getitem__), ROUNDS * FINALISTS


def oracle(first: dict[str, float], measure: Measure, wrong: str, repeats: int) -> tuple[str, int]:
    """The same of the best, the first of all, and the best that is `wrong`, judged by all of their runs."""
    pair = (next(iter(first)), wrong)
    runs = {key: [first[key], *(measure(key) for _ in range(repeats // 2))] for key in pair}
    return min(runs, key=lambda key: float(np.mean(runs[key]))), repeats


def told(gain: float, count: int, spare: int, noise: float, rng: np.random.Generator) -> tuple[bool, int]:
    """Whether a made-up study of `count` configurations calls its gain sure, and how many repeats it took.

    One of them is truly better by `gain`; the rule is that of `tuner.analysis.confirmation`.
    """
    truth = {BASELINE: 0.0, **{str(place): -gain * (place == 0) for place in range(count)}}
    runs = {key: [loss + noise * float(rng.normal())] for key, loss in truth.items()}
    better, repeated = [key for key in runs if runs[key][0] < runs[BASELINE][0]], Counter[str]()
    while key := due(better, runs, {}, repeated, rounds=STUDY_ROUNDS, baseline=BASELINE, spare=spare):
        repeated[key] += 1
        runs[key].append(truth[key] + noise * float(rng.normal()))
    if not repeated:
        return False, 0
    best = min(repeated.keys() - {BASELINE}, key=lambda key: float(np.mean(runs[key])))
    fair = {key: runs[key] if key == BASELINE else runs[key][1:] for key in repeated}
    measured_on = repeated.total() > planned_repeats(STUDY_ROUNDS, len(better), baseline=True)
    sure = SURE_AT_EACH_LOOK if measured_on else CONFIDENCE
    noise_seen = pooled(fair.values())
    assert noise_seen is not None
    chance = half_width(noise_seen, len(fair[best]), len(fair[BASELINE]), sure)
    share = float(np.mean(fair[BASELINE]) - np.mean(fair[best]))
    return share > max(math.log1p(EQUAL), chance), repeated.total()


def gains(draws: int) -> Table:
    """How many studies call a gain sure, a line for each size of it and number of configurations."""
    table = Table(title=f"A gain is called sure, {draws} studies, noise 3 %", title_justify="left")
    for head in ("true gain", "of", *(f"up to {spare} more" for spare in (0, 10, 20)), "repeats"):
        table.add_column(head, justify="right")
    for gain in (0.0, 0.05, 0.1):
        for count in (8, 24):
            cells, repeats = [], []
            for spare in (0, 10, 20):
                rng = np.random.default_rng(0)
                found = [told(gain, count, spare, 0.03, rng) for _ in range(draws)]
                cells.append(f"{np.mean([sure for sure, _ in found]):.1%}")
                repeats.append(f"{np.mean([taken for _, taken in found]):.1f}")
            table.add_row(f"{gain:.0%}", str(count), *cells, ", ".join(repeats))
    return table


def answers(surfaces: list[Surface], noise: float, draws: int) -> Table:
    """How often each way of repeating finds the best."""
    rng = np.random.default_rng(0)
    ways: dict[str, Callable[..., tuple[str, int]]] = {"peer: two finalists, chosen once": peer}
    for spare in SPARE:
        name = f"ours, up to {ROUNDS * FINALISTS + spare} repeats"
        ways[name] = lambda first, measure, spare=spare: ours(first, measure, spare)
    ways |= dict.fromkeys(ORACLES, oracle)
    right, repeats = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
    for surface in surfaces:
        bound = surface.rank_of_hit(0.02)
        ranked = sorted(surface.losses.items(), key=lambda item: item[1])
        wrong = next((key for key, loss in ranked if loss > bound), ranked[0][0])
        truth = {**dict(ranked[:MEASURED]), wrong: surface.losses[wrong]}
        ways |= {name: partial(oracle, wrong=wrong, repeats=count) for name, count in ORACLES.items()}

        def measure(key: str, truth: dict[str, float] = truth) -> float:
            return truth[key] + noise * float(rng.normal())

        for _ in range(draws):
            first = {key: measure(key) for key in truth}
            for name, way in ways.items():
                answer, taken = way(first, measure)
                right[name] += truth[answer] <= bound
                repeats[name] += taken
    total = draws * len(surfaces)
    table = Table(
        title=f"{len(surfaces)} surfaces, {draws} draws of each, noise {noise:.0%}",
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
    return table


def main() -> None:
    """Reads the command line, draws, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--surfaces", type=Path, help="folder of CSV or Parquet files")
    parser.add_argument("--noise", type=float, default=0.1, help="of a measurement, as a share")
    parser.add_argument("--draws", type=int, default=200, help="of each surface, and of each made-up study")
    args = parser.parse_args()
    console = Console(width=100)
    if args.surfaces:
        found = sorted([*args.surfaces.glob("*.csv"), *args.surfaces.glob("*.parquet")])
        if not found:
            parser.error(f"--surfaces: no CSV or Parquet file in {args.surfaces}")
        console.print(answers(list(map(Surface.read, found)), args.noise, args.draws))
    console.print(gains(args.draws))


if __name__ == "__main__":
    main()
