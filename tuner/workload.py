"""Load levels: a scenario at a concurrency or at a rate, and when its requests are due.

Knows nothing of HTTP or of engines. Everything is seeded: two trials of a study see the same requests.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tuner.scenarios import Scenario
from tuner.vocabulary import USUAL, Vocabulary

Arrivals = Literal["poisson", "constant"]


@dataclass(frozen=True)
class LoadLevel:
    """One step of a trial: a scenario at a concurrency or at a rate, bounded by requests and by time.

    With a `request_rate` (requests/s) the loop is open: requests are due by `arrivals`, whatever became of
    those before, and `concurrency` is only the most that may be open at once. `dataset` is the file of a
    scenario that takes its requests from one; `vocabulary` is what prompts are made of. All prompts of a
    scenario with sizes begin with the same `prefix_tokens`.
    """

    scenario: Scenario
    concurrency: int
    max_requests: int
    max_time_s: float
    warmup_requests: int
    seed: int
    request_rate: float | None = None
    arrivals: Arrivals = "poisson"
    dataset: str = ""
    vocabulary: Vocabulary = USUAL
    prefix_tokens: int = 0

    @property
    def load(self) -> str:
        """The load alone: `8` at a time, or `2.5/s`."""
        return str(self.concurrency) if self.request_rate is None else f"{self.request_rate:g}/s"

    @property
    def random_key(self) -> tuple[int, ...]:
        """What all random numbers of the level start from: seed, scenario, and concurrency or rate."""
        load = self.concurrency if self.request_rate is None else zlib.crc32(self.load.encode())
        return self.seed % 2**64, zlib.crc32(str(self.scenario).encode()), load

    def __str__(self) -> str:
        """`D(100,100) at 8`, `D(100,100) at 2.5/s`."""
        return f"{self.scenario} at {self.load}"


def arrivals(level: LoadLevel) -> Iterator[float]:
    """Seconds from the first request to each, without end: equal gaps, or exponential ones (Poisson).

    The level's warm-up requests come first. The same for the same seed; ValueError for a closed loop.
    """
    if level.request_rate is None:
        raise ValueError("a closed loop has no arrivals")
    due_s, rng = 0.0, np.random.default_rng((*level.random_key, zlib.crc32(b"arrivals")))
    while True:
        yield due_s
        gap = 1.0 if level.arrivals == "constant" else float(rng.exponential())
        due_s += gap / level.request_rate
