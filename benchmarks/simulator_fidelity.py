"""How far the simulator is from measured rows: throughput, TPOT and TTFT in virtual time against silicon.

    python benchmarks/simulator_fidelity.py --rows FILE.csv [--json]

The CSV has the columns of AIConfigurator's measured samples (model_path, system, isl, osl, gemm_quant_mode,
batch_size, tp_size, pp_size, silicon_ttft_ms, silicon_tpot_ms), one closed loop of `batch_size` clients
each; measured throughput is batch · osl / (ttft + tpot · (osl − 1)). Flags that the rows do not record are
defaults.
"""

from __future__ import annotations

import argparse
import json
import sys

import pandas as pd

from tuner.engines.simulator.gpus import GPUS
from tuner.engines.simulator.memory import StartFailure
from tuner.engines.simulator.models import ModelNotFound
from tuner.engines.simulator.virtual import build, closed_loop

ROUNDS = 4  # requests per client
METRICS = ("throughput", "tpot", "ttft")


def simulate(row: pd.Series) -> dict[str, float] | str:
    """Simulated throughput in tokens/s, TPOT and TTFT in ms; the reason where the row cannot be simulated."""
    gpu = row.system.split("_")[0]
    quant = row.gemm_quant_mode if isinstance(row.gemm_quant_mode, str) else ""
    if gpu not in GPUS or row.pp_size != 1 or not (quant in ("", "bfloat16") or quant.startswith("fp8")):
        return f"{row.system} {quant} pp {row.pp_size} is not modelled"
    argv = ["--model-path", row.model_path, "--gpu", gpu, "--tp-size", str(row.tp_size), "--noise", "0"]
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
    """Mean absolute percentage errors, and the rank correlation (Spearman) of throughput."""
    errors = {
        f"{name}_mape": float((lines[f"sim_{name}"] / lines[f"real_{name}"] - 1).abs().mean() * 100)
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
