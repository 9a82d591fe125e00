"""What is on a trial's GPUs before and after it, through NVML; nothing where there is no NVIDIA driver.

A GPU that others use, or on which the engine before has not let go of its memory yet, makes a sound
configuration run out of memory: that is the machine's fault, and has to be told apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

RELEASE_LIMIT_S = 30.0  # for an engine's memory to be given back after its processes are gone
TOLERANCE_BYTES = 256 * 2**20  # of what a driver keeps by itself
OTHERS_MATTER = 0.02  # share of a GPU's memory from which others can be to blame for a lack of it
_POLL_S = 0.25


@dataclass(frozen=True)
class GpuUse:
    """One GPU at one moment: its model, its memory in bytes, and who else (pid and name) is on it."""

    gpu: str
    model: str
    total_bytes: int
    used_bytes: int
    processes: tuple[tuple[int, str], ...] = ()

    @property
    def crowded(self) -> bool:
        """Whether so much is in use that a lack of memory need not be the configuration's fault."""
        return self.used_bytes > OTHERS_MATTER * self.total_bytes + TOLERANCE_BYTES


class Nvml(Protocol):
    """What is needed of `pynvml` (nvidia-ml-py), here and in `meters`."""

    def nvmlInit(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any: ...
    def nvmlDeviceGetName(self, handle: Any) -> str: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]: ...
    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any: ...
    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int: ...
    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int: ...


def nvml() -> Nvml | None:
    """NVML, ready for use; None without the library's driver."""
    try:
        import pynvml  # noqa: PLC0415  only where a GPU is looked at

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001  no driver, no library, a driver that has lost its GPU: no NVML
        return None
    return cast("Nvml", pynvml)


def look(gpu_ids: Sequence[str], library: Nvml | None) -> tuple[GpuUse, ...]:
    """Each GPU's use now; GPUs that NVML does not know (logical ones) are left out."""
    if library is None:
        return ()
    found = []
    for gpu in gpu_ids:
        with suppress(Exception):  # NVMLError has a class for each code; a GPU that is not there is no use
            found.append(_use(gpu, library))
    return tuple(found)


def all_gpus() -> tuple[GpuUse, ...]:
    """Every NVIDIA GPU of this machine."""
    library = nvml()
    count = library.nvmlDeviceGetCount() if library else 0
    return look([str(index) for index in range(count)], library)


@contextmanager
def clean(gpu_ids: Sequence[str], library: Nvml | None) -> Iterator[tuple[GpuUse, ...]]:
    """Yields the GPUs' use before; on exit waits, within a limit, until as little is in use again."""
    before = look(gpu_ids, library)
    try:
        yield before
    finally:
        deadline = time.monotonic() + RELEASE_LIMIT_S
        while not _released(before, look(gpu_ids, library)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def _released(before: Sequence[GpuUse], now: Sequence[GpuUse]) -> bool:
    allowed = {use.gpu: use.used_bytes + TOLERANCE_BYTES for use in before}
    return all(use.used_bytes <= allowed.get(use.gpu, use.used_bytes) for use in now)


def handle_of(gpu: str, library: Nvml) -> Any:
    """NVML's handle of a GPU, by its index or its UUID; raises where it knows none."""
    if gpu.isdigit():
        return library.nvmlDeviceGetHandleByIndex(int(gpu))
    return library.nvmlDeviceGetHandleByUUID(gpu)


def _use(gpu: str, library: Nvml) -> GpuUse:
    handle = handle_of(gpu, library)
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    pids = [int(process.pid) for process in library.nvmlDeviceGetComputeRunningProcesses(handle)]
    processes = tuple((pid, _name(pid)) for pid in pids)
    name = library.nvmlDeviceGetName(handle)
    return GpuUse(gpu, str(name), int(memory.total), int(memory.used), processes)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # of another container, or gone
        return "?"
