"""Which configuration is tried next: the study's searcher (`searcher`), and the strategies behind it."""

from tuner.search.scheduler import LosingTrials
from tuner.search.searcher import (
    ATTEMPTS,
    ELAPSED,
    METRIC,
    MODE,
    PLACED,
    SHARE,
    Config,
    StudySearcher,
    Suggestion,
    metric_names,
)
from tuner.search.strategies import make_searcher

__all__ = [
    "ATTEMPTS",
    "ELAPSED",
    "METRIC",
    "MODE",
    "PLACED",
    "SHARE",
    "Config",
    "LosingTrials",
    "StudySearcher",
    "Suggestion",
    "make_searcher",
    "metric_names",
]
