"""What a trial's GPUs do under load, through NVML: memory, use, power, energy. Knows nothing of load.

Energy is the rise of the driver's own counter (Volta and later); where there is none, the power that it
reports, integrated over the looks. Each figure is null where a single one of the GPUs does not tell it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

import numpy as np

from tuner.engines.gpus import Nvml, handle_of
from tuner.engines.looks import Window, looking, rise, within

EVERY_S = 0.2
_MILLI = 1e-3  # the driver counts in millijoules and milliwatts

T = TypeVar("T")


@dataclass(frozen=True)
class GpuFigures:
    """A trial's GPUs within the measured window; None for what the driver does not tell.

    `memory_max_bytes` and `memory_max_share` are of the GPU that had most in use, `use_mean` is the share of
    the time in which a kernel ran, as a mean over the GPUs; power (W) and energy (J) are of all together.
    """

    memory_max_bytes: float | None = None
    memory_max_share: float | None = None
    use_mean: float | None = None
    power_mean_w: float | None = None
    energy_j: float | None = None


@dataclass(frozen=True)
class Reading:
    """One GPU at one moment; None for what it does not tell."""

    memory_bytes: float | None
    memory_share: float | None
    use: float | None
    power_w: float | None
    energy_j: float | None


class GpuMeter:
    """The looks that were taken, each a reading of every GPU; `figures` sums them up."""

    def __init__(self, seen: Sequence[tuple[float, Sequence[Reading]]]) -> None:
        self._seen = seen

    def figures(self, window: Window | None) -> GpuFigures:
        """Of the window that was measured; empty where it is not known."""
        if window is None or not self._seen:
            return GpuFigures()
        readings = [reading for look in within(self._seen, window) for reading in look]
        energy_j = self._energy_j(window)
        length_s = window[1] - window[0]
        return GpuFigures(
            memory_max_bytes=_all(max, (reading.memory_bytes for reading in readings)),
            memory_max_share=_all(max, (reading.memory_share for reading in readings)),
            use_mean=_all(fmean, (reading.use for reading in readings)),
            power_mean_w=energy_j / length_s if energy_j is not None and length_s > 0 else None,
            energy_j=energy_j,
        )

    def _energy_j(self, window: Window) -> float | None:
        """Of all GPUs: by the counter, else by the power between two looks, taken to be their mean."""
        times = [at_s for at_s, _ in self._seen]
        counted = [_all(sum, (reading.energy_j for reading in look)) for _, look in self._seen]
        if None not in counted:
            return rise(list(zip(times, counted, strict=True)), window)  # type: ignore[arg-type]
        power_w = [_all(sum, (reading.power_w for reading in look)) for _, look in self._seen]
        if None in power_w:
            return None
        steps_j = np.diff(times) * (np.array(power_w[1:]) + np.array(power_w[:-1])) / 2
        return rise(list(zip(times, [0.0, *np.cumsum(steps_j)], strict=True)), window)


@contextmanager
def metered(gpu_ids: Sequence[str], library: Nvml | None, every_s: float = EVERY_S) -> Iterator[GpuMeter]:
    """Looks at these GPUs before, during and after what is done within; at none where one is unknown."""
    try:
        handles = [handle_of(gpu, library) for gpu in gpu_ids] if library is not None else []
    except Exception:  # noqa: BLE001  NVMLError has a class for each code; logical GPUs have no handle
        handles = []

    def look() -> tuple[Reading, ...] | None:
        return tuple(_reading(handle, library) for handle in handles) if library and handles else None

    with looking(look, every_s) as seen:
        yield GpuMeter(seen)


def _reading(handle: Any, library: Nvml) -> Reading:
    memory = _told(lambda: library.nvmlDeviceGetMemoryInfo(handle))
    use = _told(lambda: library.nvmlDeviceGetUtilizationRates(handle))
    power = _told(lambda: library.nvmlDeviceGetPowerUsage(handle))
    energy = _told(lambda: library.nvmlDeviceGetTotalEnergyConsumption(handle))
    return Reading(
        memory_bytes=None if memory is None else float(memory.used),
        memory_share=None if memory is None else memory.used / memory.total,
        use=None if use is None else use.gpu / 100,
        power_w=None if power is None else power * _MILLI,
        energy_j=None if energy is None else energy * _MILLI,
    )


def _told(ask: Callable[[], T]) -> T | None:
    """The answer; None for "not supported", "no permission" and whatever else NVML refuses with."""
    try:
        return ask()
    except Exception:  # noqa: BLE001  NVMLError has a class for each code
        return None


def _all(one: Callable[[list[float]], float], values: Iterator[float | None]) -> float | None:
    """`one` of the values; None where one is missing, or all are."""
    known = list(values)
    present = [value for value in known if value is not None]
    return one(present) if present and len(present) == len(known) else None
