"""GPU hygiene against a stand-in for NVML, whose answers a test writes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tuner.engines import gpus, make_engine
from tuner.evaluate import evaluate
from tuner.failures import Cause
from tuner.load import LOAD_GENERATORS
from tuner.task import make_task

GIB = 2**30


class FakeNvml:
    """Two 80 GiB GPUs; `used` gives the bytes in use by GPU, `pids` who uses them."""

    def __init__(self, used: dict[int, list[int]], pids: tuple[int, ...] = ()) -> None:
        self.used, self.pids = used, pids

    def nvmlInit(self) -> None:
        """Nothing to start."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index not in self.used:
            raise RuntimeError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return {"GPU-a": 0}[uuid]

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        left = self.used[handle]
        return SimpleNamespace(total=80 * GIB, used=left.pop(0) if len(left) > 1 else left[0])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return [SimpleNamespace(pid=pid) for pid in self.pids]


def test_what_is_on_a_gpu_is_named() -> None:
    (use,) = gpus.look(["0"], FakeNvml({0: [20 * GIB]}, pids=(os.getpid(), 2**22)))
    assert use.model.startswith("NVIDIA H100") and use.used_bytes == 20 * GIB
    assert use.crowded
    assert use.processes[0][1] and use.processes[1] == (2**22, "?")
    assert gpus.look(["GPU-a"], FakeNvml({0: [0]}))[0].gpu == "GPU-a"


def test_gpus_that_nvml_does_not_know_and_machines_without_it_are_passed_over() -> None:
    assert gpus.look(["7"], FakeNvml({0: [0]})) == ()
    assert gpus.look(["0"], None) == ()
    with gpus.clean(["0"], None) as before:
        assert before == ()


def test_a_trial_waits_until_its_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_POLL_S", 0.0)
    library = FakeNvml({0: [1 * GIB, 70 * GIB, 30 * GIB, 1 * GIB]})
    with gpus.clean(["0"], library):
        pass
    assert library.used[0] == [1 * GIB]  # it looked until the last


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_POLL_S", 0.0)
    monkeypatch.setattr(gpus, "RELEASE_LIMIT_S", 0.0)
    library = FakeNvml({0: [1 * GIB, 70 * GIB]})
    with pytest.raises(ZeroDivisionError), gpus.clean(["0"], library):
        raise ZeroDivisionError


@pytest.mark.parametrize(("used", "cause"), [(30 * GIB, Cause.GPU_IN_USE), (GIB // 4, Cause.OUT_OF_MEMORY)])
def test_a_lack_of_memory_on_a_crowded_gpu_is_not_the_configurations_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: int, cause: Cause
) -> None:
    task = make_task({"model": {"id_or_path": "llama-3.1-8b-instruct"}})
    engine = make_engine(task)
    monkeypatch.setattr(engine, "simulated", False, raising=False)
    monkeypatch.setattr(gpus, "nvml", lambda: FakeNvml({0: [used]}, pids=(os.getpid(),)))
    (report,) = evaluate(
        task,
        {"mem-fraction-static": 0.05},
        engine=engine,
        load=LOAD_GENERATORS["native"],
        seed=0,
        gpu_ids=["0"],
        log_path=tmp_path / "log",
    )
    assert report.failure is not None and report.failure.cause is cause
    assert report.gpus[0].used_bytes == used
    if cause.infrastructure:
        assert "GPU 0: 30.0 GiB in use" in report.failure.detail and str(os.getpid()) in report.failure.detail
