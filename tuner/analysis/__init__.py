"""What a study's results say: pure functions over result frames. No I/O, no Ray, no printing.

Times are seconds; gains are shares (0.2: a fifth better).
"""

from tuner.analysis.advice import next_steps
from tuner.analysis.answer import Gain, SloStatus, Summary, Verdict, summary
from tuner.analysis.gpus import GpuUse, gpu_use
from tuner.analysis.patterns import convergence, effects, importance, pareto, random_expectation
from tuner.analysis.trials import (
    Status,
    finished,
    measured,
    objective_of,
    outcome,
    slo_terms,
    status,
    without_repeats,
)

__all__ = [
    "Gain",
    "GpuUse",
    "SloStatus",
    "Status",
    "Summary",
    "Verdict",
    "convergence",
    "effects",
    "finished",
    "gpu_use",
    "importance",
    "measured",
    "next_steps",
    "objective_of",
    "outcome",
    "pareto",
    "random_expectation",
    "slo_terms",
    "status",
    "summary",
    "without_repeats",
]
