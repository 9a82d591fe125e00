"""The section `slo`: promises on latencies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from tuner import objective as scoring
from tuner.task.fields import Seconds, Section


class SloTermSpec(Section):
    """A promise on one statistic."""

    threshold: Seconds = Field(description="Seconds that the latency may not exceed, at any load level.")
    weight: float = Field(
        1.0, ge=0, le=1e6, allow_inf_nan=False, description="Factor of the penalty for exceeding it."
    )
    hard_fail: bool = Field(
        False, description="Whether a gross violation ranks below everything that has none."
    )
    fail_ratio: float = Field(
        0.5,
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        description="Of `hard_fail`: the share of the threshold by which it must be exceeded to be gross.",
    )


class SloStatistics(Section):
    """Promises by statistic."""

    mean: SloTermSpec | None = Field(None, description="A promise on the mean over a load level's requests.")
    p50: SloTermSpec | None = Field(None, description="On the median.")
    p90: SloTermSpec | None = Field(None, description="On the 90th percentile.")
    p95: SloTermSpec | None = Field(None, description="On the 95th percentile.")
    p99: SloTermSpec | None = Field(None, description="On the 99th percentile.")


def _promise_kind(value: Any) -> str:
    alone = isinstance(value, SloTermSpec) or (isinstance(value, Mapping) and "threshold" in value)
    return "<term>" if alone else "<statistics>"


# `{"threshold": 1}` alone is a promise on the mean.
_Promises = Annotated[
    Annotated[SloStatistics, Tag("<statistics>")] | Annotated[SloTermSpec, Tag("<term>")],
    Discriminator(_promise_kind),
]


class SloSpec(Section):
    """Promises on latencies. A promise that stands without a statistic (`mean`, `p95` ...) is on the mean."""

    latency: _Promises = Field(
        SloStatistics(), description="Promises on the time from sending a request to its last token."
    )
    ttft: _Promises = Field(SloStatistics(), description="On the time to the first token.")
    tpot: _Promises = Field(SloStatistics(), description="On the time per output token after the first.")
    steepness: float = Field(
        0.1,
        ge=1e-3,
        le=1e3,
        allow_inf_nan=False,
        description="Share of a threshold: with each such excess penalties grow e-fold; smaller is harsher.",
    )

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
