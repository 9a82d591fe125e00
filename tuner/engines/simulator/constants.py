"""Every number of the cost model that no datasheet and no config.json gives, each with where it is from.

The *fitted* ones were chosen to match measured SGLang rows (`benchmarks/simulator_fidelity.py`; the figures
stand in docs/simulator.md); `tuner calibrate` fits them to a user's own trials. An *estimate* rests on a
published figure or on a measurement of another machine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

FITTED = "fitted"


def _constant(value: float, what: str, source: str = FITTED, most: float = float("inf")) -> Any:
    return field(default=value, metadata={"what": what, "source": source, "most": most})


@dataclass(frozen=True)
class Constants:
    """Shares of what a datasheet promises, and seconds. All are positive; shares are at most 1."""

    gemm: float = _constant(0.65, "share of the datasheet's FLOP/s that matrix products reach", most=1)
    attention: float = _constant(0.42, "the same of prefill attention", most=1)
    weight_read: float = _constant(0.9, "share of the memory's bandwidth while weights stream", most=1)
    kv_read: float = _constant(0.9, "the same of the gather of cached keys and values", most=1)
    link: float = _constant(0.76, "share of the link's bandwidth that an all-reduce reaches", most=1)
    allreduce_s: float = _constant(16e-6, "one all-reduce of a few kilobytes")
    prefill_layer_s: float = _constant(0.32e-3, "host, one layer in a prefill: kernels launched singly")
    decode_s: float = _constant(1.9e-3, "host, one decode step, as far as the GPU does not hide it")
    request_s: float = _constant(28e-6, "host, a running request in it: sampling, detokenising, output")
    no_overlap: float = _constant(
        0.5,
        "share that --disable-overlap-schedule adds to the host's time of a decode step",
        "estimate: SGLang's release notes of v0.4 give 10 % throughput for overlapping",
    )
    output: float = _constant(
        0.5,
        "part of a request's host time that --stream-interval saves all but one in so many times",
        "estimate: a real server on a CPU gained 10 % throughput from an interval of 16",
        most=1,
    )
    eager_layer_s: float = _constant(
        0.45e-3,
        "launches of one layer's kernels in a decode step that no CUDA graph covers",
        "estimate: an 8B model on an H100 then decodes at about 60 tokens/s for a single stream",
    )


DEFAULT = Constants()
NAMES = tuple(constant.name for constant in fields(Constants))
FITTED_NAMES = tuple(c.name for c in fields(Constants) if c.metadata["source"] == FITTED)


def table() -> list[tuple[str, float, str, str]]:
    """(name, value, meaning, source) of every constant."""
    values = asdict(DEFAULT)
    return [(c.name, values[c.name], c.metadata["what"], c.metadata["source"]) for c in fields(Constants)]
