"""Which configuration is tried next: the study's searcher (`searcher`), and the strategies behind it."""

from tuner.search.scheduler import LosingTrials
from tuner.search.searcher import StudySearcher
from tuner.search.strategies import make_searcher
from tuner.search.trials import (
    ATTEMPTS,
    ELAPSED,
    METRIC,
    MODE,
    PLACED,
    SHARE,
    Config,
    Suggestion,
    metric_names,
)

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
