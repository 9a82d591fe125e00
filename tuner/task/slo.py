"""The section `slo`: promises on latencies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from tuner import objective as scoring
from tuner.task.fields import Seconds, Section


class SloTermSpec(Section):
    """A promise on one statistic."""

    threshold: Seconds = Field(description="Seconds.")
    weight: float = Field(1.0, ge=0, le=1e6, allow_inf_nan=False)
    hard_fail: bool = False
    fail_ratio: float = Field(0.5, ge=0, le=1e6, allow_inf_nan=False)


class SloStatistics(Section):
    """Promises by statistic."""

    mean: SloTermSpec | None = None
    p50: SloTermSpec | None = None
    p90: SloTermSpec | None = None
    p95: SloTermSpec | None = None
    p99: SloTermSpec | None = None


def _promise_kind(value: Any) -> str:
    alone = isinstance(value, SloTermSpec) or (isinstance(value, Mapping) and "threshold" in value)
    return "<term>" if alone else "<statistics>"


# `{"threshold": 1}` alone is a promise on the mean.
_Promises = Annotated[
    Annotated[SloStatistics, Tag("<statistics>")] | Annotated[SloTermSpec, Tag("<term>")],
    Discriminator(_promise_kind),
]


class SloSpec(Section):
    """Promises on latency (end to end), time to first token and time per output token."""

    latency: _Promises = SloStatistics()
    ttft: _Promises = SloStatistics()
    tpot: _Promises = SloStatistics()
    steepness: float = Field(0.1, ge=1e-3, le=1e3, allow_inf_nan=False)

    def terms(self) -> scoring.Slo:
        """The promises as `objective` judges them."""
        found = []
        for latency in ("latency", "ttft", "tpot"):
            promises = getattr(self, latency)
            for statistic, term in [("mean", promises)] if isinstance(promises, SloTermSpec) else promises:
                if term is not None:
                    options = (term.weight, term.hard_fail, term.fail_ratio)
                    found.append(scoring.SloTerm(latency, statistic, term.threshold, *options))
        return scoring.Slo(tuple(found), self.steepness)
