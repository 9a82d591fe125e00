"""Which configuration is tried next: the study's searcher (`searcher`), and the strategies behind it."""

from tuner.search.searcher import METRIC, MODE, Config, StudySearcher, Suggestion
from tuner.search.strategies import make_searcher

__all__ = ["METRIC", "MODE", "Config", "StudySearcher", "Suggestion", "make_searcher"]
