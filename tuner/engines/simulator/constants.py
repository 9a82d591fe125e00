"""Every number of the cost model that no datasheet and no config.json gives, each with where it is from.

The *fitted* ones were chosen to match measured SGLang rows (`benchmarks/simulator_fidelity.py`; the figures
stand in docs/simulator.md); `tuner calibrate` fits them to a user's own trials. An *estimate* rests on a
published figure or on a measurement of another machine.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

FITTED = "fitted"


def _constant(value: float, what: str, source: str = FITTED, most: float = float("inf")) -> Any:
    return field(default=value, metadata={"what": what, "source": source, "most": most})


@dataclass(frozen=True)
class Constants:
    """Shares of what a datasheet promises (at most 1), and seconds (`_s`). All are positive."""

    gemm: float = _constant(0.598, "share of the datasheet's FLOP/s that matrix products reach", most=1)
    fp8_gemm: float = _constant(0.823, "how much of that products in fp8 reach", most=1)
    memory: float = _constant(0.757, "share of the memory's bandwidth, of weights and cache", most=1)
    allreduce_s: float = _constant(8.24e-6, "latency of an all-reduce, for each doubling of its GPUs")
    prefill_layer_s: float = _constant(0.876e-3, "host, one layer in a prefill: kernels are launched singly")
    decode_s: float = _constant(2.37e-3, "host, one decode step: its batch is made, its graph launched")
    request_s: float = _constant(31.1e-6, "host, a running request in it: sampling, detokenising, output")
    attention: float = _constant(
        0.6,
        "share of the datasheet's FLOP/s that attention of prompts reaches",
        "estimate: FlashAttention-3 (arXiv:2407.08608) has 75 % on an H100, less where causal or short",
        most=1,
    )
    overlap: float = _constant(
        1.5,
        "how host and GPU add up: (gpu^p + host^p)^(1/p), 1 one after the other, infinity side by side",
        "chosen among 1, 1.5, 1.7 and 2 by cross-validation",
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
FITTED_NAMES = tuple(c.name for c in fields(Constants) if c.metadata["source"] == FITTED)
MOST = {c.name: float(c.metadata["most"]) for c in fields(Constants)}


def read_constants(text: str) -> Constants:
    """The constants of a calibration: a JSON object of some of them, or a file with it under `constants`.

    ValueError, with what is wrong, for anything else.
    """
    if not text.lstrip().startswith("{"):
        try:
            document = json.loads(Path(text).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{text} cannot be read: {error}") from error
        values = document.get("constants") if isinstance(document, dict) else None
    else:
        values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"{text} holds no constants")
    for name, value in values.items():
        if name not in MOST:
            raise ValueError(f"{name} is none of the constants ({', '.join(MOST)})")
        sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not sound or not 0 < value <= MOST[name]:
            raise ValueError(f"{name} must be above 0 and at most {MOST[name]:g}, got {value!r}")
    return replace(DEFAULT, **values)
