"""A study of a whole grid as a surface: small Parquet files that searches and the simulator are held against.

    python -m benchmarks.gpu.export .gpu/sglang/studies gpu-surface --to benchmarks/gpu/measured

writes `surfaces/NAME.parquet`, the parameters and `value` (to be maximised: the score, or one over it where
less is better), `surfaces/NAME-c8.parquet` and so on with the tokens per second and GPU of each load level,
`levels.parquet` with the latencies of every level in the columns of `simulator_fidelity.py`, and a README.md
with what was measured, on what, and how much repeats differ. Configurations that failed are in none but
counted; what was measured more than once is its geometric mean.

    python benchmarks/search_quality.py --surfaces benchmarks/gpu/measured/surfaces
    python benchmarks/simulator_fidelity.py --rows benchmarks/gpu/measured/levels.parquet
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tuner.analysis import measured
from tuner.engines.simulator.gpus import gpu_of
from tuner.results import ResultStore, StudyResults
from tuner.space import config_key
from tuner.task import Task, make_task

VALUE = "value"
_VERSIONS = ("sglang", "sglang-kernel", "flashinfer-python", "torch", "triton", "transformers")


def surfaces(task: Task, results: StudyResults) -> dict[str, pd.DataFrame]:
    """The surface under "" and that of each load level under `-c8`, ...: parameters, and `value`."""
    trials = _of_grid(task, results.trials)
    found = {"": _surface(trials, -trials["loss"])}
    steps = results.steps.set_index("trial")
    for level in sorted(steps["concurrency"].dropna().unique()):
        at_level = steps[steps["concurrency"] == level]
        both = trials[trials["trial"].isin(at_level.index)]
        found[f"-c{int(level)}"] = _surface(both, np.log(both["trial"].map(at_level["total_tok_s_per_gpu"])))
    return found


def _of_grid(task: Task, trials: pd.DataFrame) -> pd.DataFrame:
    """Trials that were measured whole, of configurations that give every parameter: not the defaults."""
    kept = measured(trials)
    return kept[[set(config) == set(task.parameters) for config in kept["config"]]]


def _surface(trials: pd.DataFrame, logs: pd.Series) -> pd.DataFrame:
    configs = trials["config"].map(config_key)
    means = logs.groupby(configs).mean()
    return pd.DataFrame([{**json.loads(key), VALUE: math.exp(log)} for key, log in means.items()])


def levels(task: Task, results: StudyResults) -> pd.DataFrame:
    """A row for each load level that was measured, in the columns of AIConfigurator's samples.

    `flags` is what the server was started with, as JSON; `value` is not among them.
    """
    trials = measured(results.trials)
    requests = results.requests[results.requests["error"].isna()].groupby(["trial", "step"])
    sizes = requests[["input_tokens", "output_tokens"]].mean().round().astype(int)
    rows = []
    for trial in trials.to_dict("records"):
        for step in results.steps[results.steps["trial"] == trial["trial"]].to_dict("records"):
            isl, osl = sizes.loc[(trial["trial"], step["step"])]
            rows.append(
                {
                    "model_path": Path(trial["model"]).name,
                    "system": _system(task, trial),
                    "isl": isl,
                    "osl": osl,
                    "gemm_quant_mode": "",
                    "backend_version": trial["engine_version"],
                    "batch_size": int(step["concurrency"]),
                    "tp_size": trial["gpus"],
                    "pp_size": 1,
                    "silicon_ttft_ms": 1e3 * step["ttft_mean_s"],
                    "silicon_tpot_ms": 1e3 * step["tpot_mean_s"],
                    "tok_s": step["total_tok_s"],
                    "flags": json.dumps({**task.engine.args, **trial["config"]}),
                }
            )
    return pd.DataFrame(rows)


def _system(task: Task, trial: Mapping[str, Any]) -> str:
    model = trial["gpu_model"]
    if isinstance(model, str):
        return gpu_of(model) or model
    return str(task.engine.args.get("gpu", "h100"))  # a simulated one


def noise(results: StudyResults) -> dict[str, tuple[float, int]]:
    """Standard deviation of the logarithm between starts of one configuration, and its degrees of freedom.

    By the score, and by the throughput at each load level; empty where nothing was measured twice.
    """
    trials = measured(results.trials)
    keys = trials["config"].map(config_key)
    logs = {"score": trials["loss"]}
    steps = results.steps.set_index(["concurrency", "trial"])["total_tok_s"]
    for level in sorted(results.steps["concurrency"].dropna().unique()):
        logs[f"throughput at {int(level)}"] = np.log(trials["trial"].map(steps.loc[level]))
    found = {}
    for name, each in logs.items():
        deviations = each - each.groupby(keys).transform("mean")
        freedom = len(each) - keys.nunique()
        if freedom:
            found[name] = (math.sqrt(float((deviations**2).sum()) / freedom), freedom)
    return found


def readme(task: Task, results: StudyResults, found: Mapping[str, pd.DataFrame]) -> str:
    """What was measured, with what, when, and how sure it is."""
    about, trials = results.about, results.trials
    first = trials["started_at"].min()
    gpus = sorted(trials["gpu_model"].dropna().unique())
    simulated = (
        "**Simulated, not measured**: a proof that the measuring works.\n\n" if about.get("simulated") else ""
    )
    whole = found[""]
    failed = trials["failure_cause"].value_counts()
    told = {
        "GPU": ", ".join(gpus) or "none",
        "driver": _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "processor": f"{_processor()}, {platform.machine()}",
        "engine": f"{about['engine']} {about.get('engine_version') or ''}",
        "versions": ", ".join(f"{name} {found_}" for name in _VERSIONS if (found_ := _installed(name))),
        "model": f"{Path(task.model.id_or_path).name}, weights made up",
        "measured": f"{first:%Y-%m-%d}, {len(trials)} trials",
        "configurations": f"{len(whole)} of {task.space.size:g} worked",
        "failures": ", ".join(f"{count} {cause}" for cause, count in failed.items()) or "none",
        "commit": _ask("git", "rev-parse", "--short", "HEAD"),
    }
    command = trials.loc[trials["kind"] == "search", "command"].iloc[0]
    lines = [f"| {name} | {text} |" for name, text in told.items() if text]
    noisy = [f"| {name} | {100 * sd:.2f} % | {freedom} |" for name, (sd, freedom) in noise(results).items()]
    return "\n".join(
        [
            f"# {task.task_name}\n",
            f"{simulated}{task.description} Made by `python -m benchmarks.gpu`.\n",
            "| what | |\n| --- | --- |",
            *lines,
            f"\nThe first of them was started by\n\n    {' '.join(json.loads(command))}\n",
            f"Load: {', '.join(task.benchmark.traffic_scenarios)}, {_loads(task)} requests in flight,",
            f"{task.benchmark.max_time_per_iteration:g} s each after a warm-up.",
            f"`{VALUE}` of `{task.task_name}` is {task.objective.name} with the penalty of the",
            "promises, of the others tokens per second and GPU.\n",
            "How far two starts of one configuration differ (standard deviation, as a share):\n",
            "| of | noise | degrees of freedom |\n| --- | --- | --- |",
            *(noisy or ["| nothing was measured twice | | 0 |"]),
            f"\nFrom {whole[VALUE].min():,.4g} to {whole[VALUE].max():,.4g}, half of them above "
            f"{whole[VALUE].median():,.4g}.\n",
        ]
    )


def _loads(task: Task) -> str:
    return ", ".join(map(str, task.benchmark.num_concurrency))


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor()


def export(root: str, study: str, folder: Path) -> list[Path]:
    """Writes all of it; returns the surfaces."""
    results = ResultStore(root, study).read()
    task = make_task(results.about["task"], study)
    found = surfaces(task, results)
    (folder / "surfaces").mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, surface in found.items():
        paths.append(folder / "surfaces" / f"{study}{suffix}.parquet")
        surface.to_parquet(paths[-1], index=False)
    levels(task, results).to_parquet(folder / "levels.parquet", index=False)
    (folder / "README.md").write_text(readme(task, results, found), encoding="utf-8")
    return paths


def main() -> None:
    """Exports what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", help="where studies are kept")
    parser.add_argument("study")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    for path in export(args.root, args.study, args.to):
        print(f"{len(pd.read_parquet(path)):4} configurations  {path}")


if __name__ == "__main__":
    main()
