"""How far the simulator is from measured rows: throughput, TPOT and TTFT in virtual time against silicon.

    python benchmarks/simulator_fidelity.py --rows FILE.csv [--json] [--cross-validate | --fit]

The file, CSV or Parquet, has the columns of AIConfigurator's measured samples (model_path, system, isl, osl,
gemm_quant_mode, backend_version, batch_size, tp_size, pp_size, silicon_ttft_ms, silicon_tpot_ms), one closed
loop of `batch_size` clients each, who all begin at once; measured throughput is batch · osl / (ttft + tpot ·
(osl − 1)), Little's law of that loop, whether a request is being served or waits. Those rows do not record
flags: `recipe` infers two of them, the others are defaults. A column `flags` has them as JSON, as in the rows
that `benchmarks/gpu` measures.

`--cross-validate` fits the constants anew, from what one would guess of them, to a part of the rows, and
judges them on the other: each model with its GPU left out in turn, each tp, each of five random parts.
`--fit` fits them to all rows, from the same guess: these are the constants of the simulator.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

import numpy as np
import pandas as pd

from tuner.engines.sglang import flag_arguments
from tuner.engines.simulator.constants import DEFAULT, FITTED_NAMES, Constants
from tuner.engines.simulator.cost import Parts
from tuner.engines.simulator.fit import GUESS, Latencies, Run, fit
from tuner.engines.simulator.gpus import GPUS
from tuner.engines.simulator.memory import StartFailure
from tuner.engines.simulator.models import ModelNotFound
from tuner.engines.simulator.virtual import build, closed_loop

# Requests per client. All prompts of the first round come at once and wait longest: the more rounds, the less
# they count in the mean TTFT. Not recorded; from 4 to 8 the error of TTFT rises from 22 to 31 %.
ROUNDS = 4
MIXED_CHUNK_SINCE = (0, 5, 6)
GUESS_SD = 1.0  # of the logarithm of a constant that is guessed: off by a factor of e, say
METRICS = ("throughput", "tpot", "ttft")


def recipe(version: str) -> list[str]:
    """The flags that the rows of an SGLang `version` were measured with, as far as their figures tell.

    Where the KV cache is short, 0.8 is the round fraction of memory whose capacity gives the number of
    requests that were resident (batch · service time / latency). Before 0.5.6, TTFT is that of a whole batch
    in lockstep, later of prompts that come one by one: decoding went on during prefills.
    """
    flags = ["--mem-fraction-static", "0.8"]
    release = tuple(map(int, re.findall(r"\d+", version)[:3]))
    return [*flags, "--enable-mixed-chunk"] if release >= MIXED_CHUNK_SINCE else flags


def simulate(row: pd.Series) -> Run | str:
    """The row and the simulation of it; the reason where it cannot be simulated."""
    gpu = row.system.split("_")[0]
    quant = row.gemm_quant_mode if isinstance(row.gemm_quant_mode, str) else ""
    if gpu not in GPUS or row.pp_size != 1 or not (quant in ("", "bfloat16") or quant.startswith("fp8")):
        return f"{row.system} {quant} pp {row.pp_size} is not modelled"
    argv = ["--model-path", row.model_path, "--gpu", gpu, "--tp-size", str(row.tp_size), "--noise", "0"]
    recorded = row.get("flags")
    argv += flag_arguments(json.loads(recorded)) if isinstance(recorded, str) else recipe(row.backend_version)
    if quant.startswith("fp8"):
        argv += ["--quantization", "fp8"]
    try:
        _, _, scheduler = build(argv)
    except (ModelNotFound, StartFailure) as error:
        return f"{row.model_path} on {gpu} tp {row.tp_size}: {error}"
    rest = tuple(range(row.isl - 1))
    requests = (((-1 - index, *rest), row.osl) for index in range(ROUNDS * row.batch_size))
    trace: list[tuple[float, Parts]] = []
    loop = closed_loop(scheduler, requests, row.batch_size, trace)
    ttft_s, tpot_s = row.silicon_ttft_ms / 1e3, row.silicon_tpot_ms / 1e3
    return Run.of(
        trace,
        ((r.sent_s, r.sent_s + r.ttft_s, r.sent_s + r.e2e_s, r.output_tokens) for r in loop.served),
        DEFAULT,
        Latencies(ttft_s, tpot_s, ttft_s + tpot_s * (row.osl - 1)),
        group=f"{row.model_path.split('/')[-1]} {gpu}",
        **{"tp": row.tp_size, "isl": row.isl, "osl": row.osl, "batch": row.batch_size},
    )


def line(run: Run, constants: Constants) -> dict[str, Any]:
    """Measured and simulated figures of a row: throughput in tokens/s, TPOT and TTFT in ms."""
    figures: dict[str, Any] = dict(run.labels)
    for side, of in (("sim", run.simulated(constants)), ("real", run.measured)):
        seconds = of.ttft + of.tpot * (run.labels["osl"] - 1)
        figures[f"{side}_throughput"] = run.labels["batch"] * run.labels["osl"] / seconds
        figures[f"{side}_tpot"], figures[f"{side}_ttft"] = of.tpot * 1e3, of.ttft * 1e3
    return figures


def summary(lines: pd.DataFrame) -> dict[str, float]:
    """Mean absolute errors as shares of what was measured, and the rank correlation of throughput."""
    errors = {
        f"{name}_mape": float((lines[f"sim_{name}"] / lines[f"real_{name}"] - 1).abs().mean())
        for name in METRICS
    }
    spearman = float(lines.sim_throughput.rank().corr(lines.real_throughput.rank()))
    return {**errors, "spearman": spearman, "rows": len(lines)}


def main() -> int:
    """Prints the comparison by model, GPU and tp."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", required=True, help="CSV or Parquet file of measured rows")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--cross-validate", action="store_true", help="judge each row by others")
    parser.add_argument("--fit", action="store_true", help="fit the constants to all rows and judge by those")
    parser.add_argument("--detail", action="store_true", help="print every row too")
    args = parser.parse_args()
    rows = pd.read_parquet(args.rows) if args.rows.endswith(".parquet") else pd.read_csv(args.rows)
    found = [simulate(row) for _, row in rows.iterrows()]
    left_out = [reason for reason in found if isinstance(reason, str)]
    for reason in sorted(set(left_out)):
        print(f"left out ({left_out.count(reason)} rows): {reason}", file=sys.stderr)
    runs = [run for run in found if isinstance(run, Run)]
    if not runs:
        print("no row can be simulated", file=sys.stderr)
        return 1
    if args.fit:
        fitted = fit(runs, GUESS, sd=GUESS_SD)
        print({name: float(f"{getattr(fitted, name):.3g}") for name in FITTED_NAMES}, file=sys.stderr)
        lines = pd.DataFrame([line(run, fitted) for run in runs])
    else:
        lines = pd.DataFrame([line(run, DEFAULT) for run in runs])
    groups = cross_validation(runs) if args.cross_validate else by_group(lines)
    if args.json:
        print(json.dumps(groups, indent=2))
        return 0
    if args.detail:
        print(lines.round(2).to_string(index=False), end="\n\n")
    print(pd.DataFrame(groups).T.round(3).to_string())
    return 0


def by_group(lines: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The summary of all rows, of each model with its GPU, and of each tp of these."""
    groups = {"all": summary(lines)}
    groups |= {str(name): summary(part) for name, part in lines.groupby("group")}
    return groups | {f"{name} tp{tp}": summary(part) for (name, tp), part in lines.groupby(["group", "tp"])}


def cross_validation(runs: list[Run]) -> dict[str, dict[str, float]]:
    """The summary of all rows, each with constants that were fitted to others."""
    parts = np.random.default_rng(0).permutation(len(runs)) % 5
    schemes = {
        "each model and GPU left out": [run.labels["group"] for run in runs],
        "each tp left out": [run.labels["tp"] for run in runs],
        "each fifth left out": list(parts),
    }
    found = {}
    for name, folds in schemes.items():
        lines = []
        for fold in dict.fromkeys(folds):
            others = [run for run, its in zip(runs, folds, strict=True) if its != fold]
            fitted = fit(others, GUESS, sd=GUESS_SD)
            lines += [line(run, fitted) for run, its in zip(runs, folds, strict=True) if its == fold]
        found[name] = summary(pd.DataFrame(lines))
    return found


if __name__ == "__main__":
    sys.exit(main())
