"""Which configuration is tried next: the study's searcher (`searcher`), and the strategies behind it."""

from tuner.search.scheduler import LosingTrials
from tuner.search.searcher import StudySearcher
from tuner.search.strategies import make_searcher

__all__ = ["LosingTrials", "StudySearcher", "make_searcher"]
