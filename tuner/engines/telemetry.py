"""What an engine says of itself under load: its /metrics, looked at once a second. Knows nothing of load.

SGLang's, vLLM's and llama.cpp's names, of today and of yesterday; an engine that has no such page (SGLang
without --enable-metrics, llama.cpp without --metrics) is simply not described.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

from tuner.engines.looks import Window, looking, rise, within
from tuner.engines.server import call

EVERY_S = 1.0
_PATIENCE_S = 2.0
_HUGE = 1e100  # beyond any count; sums of larger ones might not be finite
_LINE = re.compile(r"^(?:sglang|vllm|llamacpp):(\w+)(?:\{[^}]*\})? ([0-9.eE+-]+)", re.MULTILINE)
_RUNNING = ("num_running_reqs", "num_requests_running", "requests_processing")
_QUEUED = ("num_queue_reqs", "num_requests_waiting", "requests_deferred")
_KV_USE = ("token_usage", "kv_cache_usage_perc", "gpu_cache_usage_perc", "kv_cache_usage_ratio")
_HIT_RATE = ("cache_hit_rate", "gpu_prefix_cache_hit_rate")
_HITS = (  # counters: tokens found in the prefix cache, tokens looked up
    ("prefix_cache_hits_total", "prefix_cache_queries_total"),
    ("gpu_prefix_cache_hits_total", "gpu_prefix_cache_queries_total"),
    ("cached_tokens_total", "prompt_tokens_total"),
)

Sample = Mapping[str, Sequence[float]]  # values by name, one for each set of labels


@dataclass(frozen=True)
class EngineFigures:
    """An engine's own account of a load level; None for what it does not say.

    Requests at a time, shares from 0 to 1. Means and maxima are over the looks.
    """

    running_mean: float | None = None
    queued_mean: float | None = None
    queued_max: float | None = None
    kv_use_mean: float | None = None
    kv_use_max: float | None = None
    cache_hit_rate: float | None = None


class Telemetry:
    """The looks that were taken; `figures` sums them up."""

    def __init__(self, seen: Sequence[tuple[float, Sample]]) -> None:
        self.seen = seen

    def figures(self, window: Window | None = None) -> EngineFigures:
        """Of the window that was measured, as far as looks fell into it.

        Counts are added over an engine's replicas, shares averaged. The looks at either end are without
        load, and tell only what the counters stood at.
        """
        during = within(self.seen, window)
        running, queued = (_series(during, names, sum) for names in (_RUNNING, _QUEUED))
        kv_use = _series(during, _KV_USE, fmean)
        return EngineFigures(
            running_mean=_mean(running),
            queued_mean=_mean(queued),
            queued_max=max(queued, default=None),
            kv_use_mean=_mean(kv_use),
            kv_use_max=max(kv_use, default=None),
            cache_hit_rate=self._hit_rate(during, window),
        )

    def _hit_rate(self, during: Sequence[Sample], window: Window | None) -> float | None:
        """From what the counters rose by; else the mean of what the engine says at each look."""
        for names in _HITS:
            if self.seen and self.seen[-1][1].keys() >= set(names):
                found, asked = (self._rise(name, window) for name in names)
                return found / asked if asked > 0 else None
        return _mean(_series(during, _HIT_RATE, fmean))

    def _rise(self, counter: str, window: Window | None) -> float:
        counts = [(at_s, sum(look.get(counter, ()))) for at_s, look in self.seen]
        return rise(counts, window or (counts[0][0], counts[-1][0]))


@contextmanager
def watched(base_url: str, api_key: str = "", every_s: float = EVERY_S) -> Iterator[Telemetry]:
    """Looks at the server's /metrics before, during and after what is done within; never raises for it."""
    with looking(lambda: sample(base_url, api_key), every_s) as seen:
        yield Telemetry(seen)


def sample(base_url: str, api_key: str = "") -> Sample | None:
    """The page as it stands; None where there is none, or nothing that is known."""
    try:
        text = call(f"{base_url}/metrics", timeout_s=_PATIENCE_S, api_key=api_key)
    except (OSError, ValueError):
        return None
    return read_page(text) if isinstance(text, str) else None


def read_page(text: str) -> Sample | None:
    """What a page says, whatever it is; None where that is nothing that is known."""
    found: dict[str, list[float]] = {}
    for name, value in _LINE.findall(text):
        found.setdefault(name, []).append(_number(value))
    return found or None


def _series(
    samples: Sequence[Sample], names: Sequence[str], one: Callable[[Sequence[float]], float]
) -> list[float]:
    """The first of `names` that is there, over time, with its replicas made `one`."""
    name = next((name for name in names for seen in samples if name in seen), None)
    return [one(seen[name]) for seen in samples if name in seen] if name else []


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _number(text: str) -> float:
    """0 for what is no finite number: an infinite one would make all that is counted with it none."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if abs(value) < _HUGE else 0.0
