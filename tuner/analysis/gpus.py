"""What a trial's GPUs drew and held, over all of its load levels."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.analysis.trials import Trial
from tuner.results import StudyResults


@dataclass(frozen=True)
class GpuUse:
    """A trial's GPUs: energy in J, power in W of all together; memory of the one that had most in use."""

    joules_per_output_token: float
    power_w: float
    memory_bytes: float
    memory_share: float


def gpu_use(results: StudyResults, trial: Trial | None) -> GpuUse | None:
    """Of `trial`; None where its GPUs did not tell of every load level, or there is no trial."""
    if trial is None:
        return None
    steps = results.steps[results.steps["trial"] == trial["trial"]]
    told = steps[["gpu_energy_j", "gpu_memory_max_bytes", "gpu_memory_max_share"]]
    tokens = float((steps["output_tok_s"] * steps["duration_s"]).sum())
    if not tokens or bool(told.isna().any(axis=None)):
        return None
    energy_j = float(steps["gpu_energy_j"].sum())
    return GpuUse(
        joules_per_output_token=energy_j / tokens,
        power_w=energy_j / float(steps["duration_s"].sum()),
        memory_bytes=float(steps["gpu_memory_max_bytes"].max()),
        memory_share=float(steps["gpu_memory_max_share"].max()),
    )
