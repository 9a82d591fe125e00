"""What GPUs draw and do under load, read through a stand-in for NVML whose clock is the real one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tuner.engines import gpus, make_engine
from tuner.engines.looks import within
from tuner.engines.meters import GpuFigures, metered
from tuner.evaluate import evaluate
from tuner.load import LOAD_GENERATORS
from tuner.report import level_table
from tuner.rows import step_row
from tuner.task import make_task

GIB = 2**30
EVERY_S = 0.01


class Refused(Exception):
    """As NVMLError_NotSupported."""


class FakeNvml:
    """GPUs of 80 GiB, each drawing `watts(gpu, seconds from the start)`; `lacks` names what is not told."""

    def __init__(
        self, watts: Callable[[int, float], float], count: int = 2, lacks: Sequence[str] = ()
    ) -> None:
        self.watts, self.count, self.lacks = watts, count, lacks
        self.began_s = time.perf_counter()
        self.asked: set[int] = set()

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= self.count:
            raise Refused
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return []

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return self._tell(handle, "memory", SimpleNamespace(total=80 * GIB, used=(40 + 20 * handle) * GIB))

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self._tell(handle, "use", SimpleNamespace(gpu=60 + 20 * handle, memory=10))

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return self._tell(handle, "power", round(1e3 * self.watts(handle, self._now_s())))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        steps = int(self._now_s() / 1e-3)
        drawn_j = sum(self.watts(handle, step * 1e-3) for step in range(steps)) * 1e-3
        return self._tell(handle, "energy", 10**9 + round(1e3 * drawn_j))

    def _now_s(self) -> float:
        return time.perf_counter() - self.began_s

    def _tell(self, handle: int, what: str, value: Any) -> Any:
        self.asked.add(handle)
        if what in self.lacks:
            raise Refused
        return value


def steady(gpu: int, at_s: float) -> float:
    return 300.0 + 100.0 * gpu


def figures(library: FakeNvml, gpu_ids: tuple[str, ...] = ("0", "1")) -> tuple[GpuFigures, float]:
    """Of a window in the middle of a run, and its length."""
    with metered(gpu_ids, library, EVERY_S) as meter:
        time.sleep(0.1)
        begin_s = time.perf_counter()
        time.sleep(0.2)
        end_s = time.perf_counter()
        time.sleep(0.1)
    return meter.figures((begin_s, end_s)), end_s - begin_s


def test_memory_use_power_and_energy_of_the_gpus_together() -> None:
    seen, length_s = figures(FakeNvml(steady))
    assert (seen.memory_max_bytes, seen.memory_max_share) == (60 * GIB, 0.75)
    assert seen.use_mean == pytest.approx(0.7)
    assert seen.energy_j == pytest.approx(700 * length_s, rel=0.1)
    assert seen.power_mean_w == pytest.approx(seen.energy_j / length_s)


def test_only_the_gpus_that_the_trial_holds_are_asked() -> None:
    library = FakeNvml(steady, count=8)
    seen, _ = figures(library, ("1",))
    assert library.asked == {1}
    assert seen.power_mean_w == pytest.approx(400, rel=0.1)
    assert seen.use_mean == pytest.approx(0.8)


@pytest.mark.parametrize("lacks", [(), ("energy",)])
def test_only_the_window_counts(lacks: tuple[str, ...]) -> None:
    """A GPU that draws power before the window and after it only."""
    library = FakeNvml(lambda gpu, at_s: 0.0)
    with metered(["0"], library, EVERY_S) as meter:
        time.sleep(0.05)
        idle_from = library._now_s()
        idle_until = idle_from + 0.3
        library.watts = lambda gpu, at_s: 0.0 if idle_from < at_s < idle_until else 900.0
        time.sleep(0.45)
    began_s = library.began_s
    idle = meter.figures((began_s + idle_from + 0.1, began_s + idle_until - 0.1))
    busy = meter.figures((began_s + idle_until + 0.05, began_s + idle_until + 0.1))
    assert idle.power_mean_w is not None and busy.power_mean_w is not None
    assert idle.power_mean_w < 0.1 * busy.power_mean_w


def test_without_a_counter_the_power_is_integrated() -> None:
    seen, length_s = figures(FakeNvml(steady, lacks=("energy",)))
    assert seen.energy_j == pytest.approx(700 * length_s, rel=0.01)


def test_what_a_driver_does_not_tell_is_left_open() -> None:
    seen, _ = figures(FakeNvml(steady, lacks=("energy", "power", "use")))
    assert (seen.energy_j, seen.power_mean_w, seen.use_mean) == (None, None, None)
    assert seen.memory_max_bytes == 60 * GIB


@pytest.mark.parametrize("ids", [(), ("0", "7")])
@pytest.mark.parametrize("library", [None, FakeNvml(steady)])
def test_without_nvml_or_with_a_gpu_that_it_does_not_know_there_are_no_figures(
    library: FakeNvml | None, ids: tuple[str, ...]
) -> None:
    with metered(ids, library, EVERY_S) as meter:
        time.sleep(2 * EVERY_S)
    assert meter.figures((0.0, time.perf_counter())) == GpuFigures()


def test_a_window_that_is_not_known_has_no_figures() -> None:
    with metered(["0"], FakeNvml(steady), EVERY_S) as meter:
        time.sleep(2 * EVERY_S)
    assert meter.figures(None) == GpuFigures()


def test_looks_are_cut_to_the_window() -> None:
    looks = [(float(at_s), at_s) for at_s in range(10)]
    assert within(looks, (2.5, 5.0)) == [3, 4, 5]
    assert within(looks, (2.1, 2.9)) == within(looks, None) == list(range(1, 9))


def test_a_trial_has_the_figures_of_its_gpus_in_every_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = {"traffic_scenarios": ["D(20,20)"], "num_concurrency": [2, 4], "max_requests_per_iteration": 30}
    task = make_task({"benchmark": load})
    engine, library = make_engine(task), FakeNvml(steady)
    monkeypatch.setattr(engine, "simulated", False, raising=False)
    monkeypatch.setattr(gpus, "nvml", lambda: library)
    native = LOAD_GENERATORS["native"]
    options: dict[str, Any] = {"engine": engine, "load": native, "seed": 0, "log_path": tmp_path / "log"}
    steps = [report.step for report in evaluate(task, {}, gpu_ids=["1"], **options) if report.step]
    assert len(steps) == 2
    for step in steps:
        row = step_row(step)
        assert row["gpu_power_mean_w"] == pytest.approx(400, rel=0.1)
        assert row["gpu_energy_j"] == pytest.approx(row["gpu_power_mean_w"] * row["duration_s"])
        tokens = row["total_tok_s"] * row["duration_s"]
        assert row["gpu_energy_per_token_j"] * tokens == pytest.approx(row["gpu_energy_j"])
        assert row["gpu_energy_per_output_token_j"] > row["gpu_energy_per_token_j"]
        assert (row["gpu_memory_max_bytes"], row["gpu_memory_max_share"]) == (60 * GIB, 0.75)
    console = Console(width=120, record=True)
    console.print(level_table(row))
    shown = console.export_text()
    assert "the GPUs: 80.0 % of the time at work, 60.0 GiB in use at most (75.0 %)" in shown
    assert "J per output token" in shown


def test_a_simulated_trial_has_no_gpu_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "nvml", lambda: FakeNvml(steady))
    load = {"traffic_scenarios": ["D(20,20)"], "num_concurrency": [2], "max_requests_per_iteration": 4}
    task = make_task({"benchmark": load})
    native = LOAD_GENERATORS["native"]
    options: dict[str, Any] = {"load": native, "seed": 0, "log_path": tmp_path / "log"}
    *_, last = evaluate(task, {}, engine=make_engine(task), gpu_ids=["1"], **options)
    assert last.step is not None and last.step.gpu == GpuFigures()
