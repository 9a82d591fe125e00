"""What a study's results say: pure functions over result frames. No I/O, no Ray, no printing.

Times are seconds; gains are shares (0.2: a fifth better).
"""

from tuner.analysis.advice import next_steps
from tuner.analysis.answer import Gain, SloStatus, Summary, Verdict, summary
from tuner.analysis.gpus import GpuUse, gpu_use
from tuner.analysis.groups import Group
from tuner.analysis.landscape import RandomSearch, grid_size, importance, random_search, space_of
from tuner.analysis.patterns import (
    Pair,
    convergence,
    effects,
    failures,
    pair,
    pareto,
    random_expectation,
    where_trials_fail,
)
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
    "Group",
    "Pair",
    "RandomSearch",
    "SloStatus",
    "Status",
    "Summary",
    "Verdict",
    "convergence",
    "effects",
    "failures",
    "finished",
    "gpu_use",
    "grid_size",
    "importance",
    "measured",
    "next_steps",
    "objective_of",
    "outcome",
    "pair",
    "pareto",
    "random_expectation",
    "random_search",
    "slo_terms",
    "space_of",
    "status",
    "summary",
    "where_trials_fail",
    "without_repeats",
]
