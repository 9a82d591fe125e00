"""How far the simulator is from measured rows: throughput, TPOT and TTFT in virtual time against silicon.

    python benchmarks/simulator_fidelity.py --rows FILE.csv [--json]

The CSV has the columns of AIConfigurator's measured samples (model_path, system, isl, osl, gemm_quant_mode,
backend_version, batch_size, tp_size, pp_size, silicon_ttft_ms, silicon_tpot_ms), one closed loop of
`batch_size` clients each, who all begin at once; measured throughput is batch · osl / (ttft + tpot ·
(osl − 1)), Little's law of that loop, whether a request is being served or waits. The rows do not record
flags: `recipe` infers two of them, the others are defaults.
"""

from __future__ import annotations

import argparse
import json
import re
import sys

import pandas as pd

from tuner.engines.simulator.gpus import GPUS
from tuner.engines.simulator.memory import StartFailure
from tuner.engines.simulator.models import ModelNotFound
from tuner.engines.simulator.virtual import build, closed_loop

# Requests per client. All prompts of the first round come at once and wait longest: the more rounds, the less
# they count in the mean TTFT. Not recorded; from 4 to 8 the error of TTFT rises from 22 to 31 %.
ROUNDS = 4
MIXED_CHUNK_SINCE = (0, 5, 6)
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


def simulate(row: pd.Series) -> dict[str, float] | str:
    """Simulated throughput in tokens/s, TPOT and TTFT in ms; the reason where the row cannot be simulated."""
    gpu = row.system.split("_")[0]
    quant = row.gemm_quant_mode if isinstance(row.gemm_quant_mode, str) else ""
    if gpu not in GPUS or row.pp_size != 1 or not (quant in ("", "bfloat16") or quant.startswith("fp8")):
        return f"{row.system} {quant} pp {row.pp_size} is not modelled"
    argv = ["--model-path", row.model_path, "--gpu", gpu, "--tp-size", str(row.tp_size), "--noise", "0"]
    argv += recipe(row.backend_version)
    if quant.startswith("fp8"):
        argv += ["--quantization", "fp8"]
    try:
        _, _, scheduler = build(argv)
    except (ModelNotFound, StartFailure) as error:
        return f"{row.model_path} on {gpu} tp {row.tp_size}: {error}"
    rest = tuple(range(row.isl - 1))
    requests = (((-1 - index, *rest), row.osl) for index in range(ROUNDS * row.batch_size))
    loop = closed_loop(scheduler, requests, row.batch_size)
    seconds = loop.ttft_s + loop.tpot_s * (row.osl - 1)
    return {
        "throughput": row.batch_size * row.osl / seconds,
        "tpot": loop.tpot_s * 1e3,
        "ttft": loop.ttft_s * 1e3,
    }


def compare(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """(one line per simulated row with `sim_` and `real_` columns, why the others are left out)."""
    lines, left_out = [], []
    for _, row in rows.iterrows():
        simulated = simulate(row)
        if isinstance(simulated, str):
            left_out.append(simulated)
            continue
        seconds = (row.silicon_ttft_ms + row.silicon_tpot_ms * (row.osl - 1)) / 1e3
        real = {"throughput": row.batch_size * row.osl / seconds}
        real |= {"tpot": row.silicon_tpot_ms, "ttft": row.silicon_ttft_ms}
        lines.append(
            {"group": f"{row.model_path.split('/')[-1]} {row.system.split('_')[0]}"}
            | {"tp": row.tp_size, "isl": row.isl, "osl": row.osl, "batch": row.batch_size}
            | {f"sim_{name}": value for name, value in simulated.items()}
            | {f"real_{name}": value for name, value in real.items()}
        )
    return pd.DataFrame(lines), left_out


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
    parser.add_argument("--rows", required=True, help="CSV of measured rows")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--detail", action="store_true", help="print every row too")
    args = parser.parse_args()
    lines, left_out = compare(pd.read_csv(args.rows))
    for reason in sorted(set(left_out)):
        print(f"left out ({left_out.count(reason)} rows): {reason}", file=sys.stderr)
    if lines.empty:
        print("no row can be simulated", file=sys.stderr)
        return 1
    groups = {"all": summary(lines)}
    groups |= {str(name): summary(part) for name, part in lines.groupby("group")}
    groups |= {f"{name} tp{tp}": summary(part) for (name, tp), part in lines.groupby(["group", "tp"])}
    if args.json:
        print(json.dumps(groups, indent=2))
        return 0
    if args.detail:
        print(lines.round(2).to_string(index=False), end="\n\n")
    print(pd.DataFrame(groups).T.round(3).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
