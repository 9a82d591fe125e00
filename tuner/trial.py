"""A trial on the cluster: the Tune Trainable and its placement group, a thin shell around `evaluate`.

One Tune iteration is one load level, so a scheduler can stop a trial between levels. A *class*
trainable, because `cleanup` is given the time that an engine needs to leave its GPUs.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import ray
from ray import tune

from tuner.accelerators import kind_of, selector
from tuner.dashboard import LevelMetrics, show_log, title_process, trial_name
from tuner.evaluate import Report, evaluate
from tuner.objective import FAILED_TIER as UNKNOWN
from tuner.results import data_home
from tuner.rig import Rig, rig
from tuner.rows import TrialInfo, this_node
from tuner.suggestion import ELAPSED, PLACED, SHARE, metric_names
from tuner.task import Task

NODE_ID = "ray.io/node-id"  # a label that every node has


@dataclass(frozen=True)
class TrialContext:
    """What every trial of a study shares.

    `secrets` are the driver's variables that the task refers to: a node need not have them. `accelerator`
    is the kind of GPU that trials need, empty for any. `abandoned_s` is how long an actor whose trial is not
    over waits to hear from its driver: then it ends itself, and its engine with it. Ray's own limits may take
    minutes where a node was cut off, and a driver pauses for `recorder.PATIENCE_S` at the most.
    """

    study: str
    task: Task
    engine: str
    seed: int
    virtual: bool = False
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    accelerator: str = ""
    abandoned_s: float = 900.0

    def rig(self, number: int) -> Rig:
        """What measures trial `number`; in virtual time its noise is its own, and the same every time."""
        return rig(self.task, self.engine, virtual=self.virtual, seed=crc32(f"{self.seed} {number}".encode()))


def _forget_threads() -> None:
    """Takes OMP_NUM_THREADS away where it is Ray's: an engine would run unlike what is exported of it.

    Ray sets it within the process; what the node or the user had set was there when the process began.
    """
    try:
        inherited = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:  # no Linux
        return
    if not any(each.startswith(b"OMP_NUM_THREADS=") for each in inherited):
        os.environ.pop("OMP_NUM_THREADS", None)


def engine_log(study: str, number: int) -> Path:
    """Where the engine of a trial writes, on the node where it runs."""
    return data_home() / "logs" / study / f"trial-{number:05d}.log"


class EngineTrial(tune.Trainable):
    """Runs one configuration; its config is what `search.StudySearcher` suggests.

    Its first result says where it runs, before anything is started; each further one is a load level's.
    """

    def setup(self, config: dict[str, Any], context: TrialContext | None = None) -> None:
        assert context is not None
        self._context = context
        os.environ.update(context.secrets)
        _forget_threads()
        self._metrics = LevelMetrics(context.study)
        self._abandoned = _new_timer(context.abandoned_s)
        self._begin(config)

    def __repr__(self) -> str:
        """As the dashboard lists its actor, which asks once and may get further trials of its size."""
        gpus = len(self._info.gpu_ids)
        return f"{self._context.study}, {gpus} GPU{'s' * (gpus != 1)}"

    def _begin(self, config: dict[str, Any]) -> None:
        context = self._context
        self._info = TrialInfo(
            number=config["number"],
            kind=config["kind"],
            config=config["flags"],
            gpu_ids=[str(gpu) for gpu in ray.get_gpu_ids()],
            started_at=datetime.now(UTC),
            duration_s=0.0,
            node=this_node(),
            node_id=ray.get_runtime_context().get_node_id(),
            accelerator=kind_of(ray.get_runtime_context().get_node_labels()),
            log_path=str(engine_log(context.study, config["number"])),
            attempts=config["attempt"],
            expected_gain=config["expected_gain"],
        )
        self._name = trial_name(config["number"], config["flags"], config["attempt"])
        if not context.virtual:  # there, nothing writes a log
            show_log(context.study, self._name, Path(self._info.log_path))
        self._placed = False
        self._began = time.monotonic()
        measured_by = context.rig(config["number"])
        self._reports: Iterator[Report] = evaluate(
            context.task,
            config["flags"],
            engine=measured_by.engine,
            load=measured_by.load,
            clock=measured_by.clock,
            seed=context.seed,
            gpu_ids=self._info.gpu_ids,
            log_path=Path(self._info.log_path),
            glances=context.task.stops_trials and config["kind"] != "confirm",
        )

    def step(self) -> dict[str, Any]:
        """Where the trial runs; then one load level: its report, the loss so far, whether it is over."""
        self._abandoned.cancel()
        result = self._result()
        if not result.get(tune.result.DONE):
            self._abandoned = _new_timer(self._context.abandoned_s)
            self._abandoned.start()
        return result

    def _result(self) -> dict[str, Any]:
        if not self._placed:
            self._placed = True
            unknown = dict.fromkeys(metric_names(len(self._context.task.objectives)), UNKNOWN)
            return {**unknown, PLACED: self._info.node_id, "info": self._info}
        title_process(self._name)
        report = next(self._reports)
        if report.step is not None:
            self._metrics.show(report.step)
        failure, others = report.failure, [score.loss for score in report.others]
        return {
            **dict(zip(metric_names(1 + len(others)), (report.score.loss, *others), strict=True)),
            SHARE: report.share,
            tune.result.DONE: report.done,
            "infrastructure": failure is not None and failure.cause.infrastructure,
            "report": report,
            "info": self._info,
            ELAPSED: time.monotonic() - self._began,
        }

    def cleanup(self) -> None:
        """Ends the engine, wherever the trial stands."""
        self._abandoned.cancel()
        self._reports.close()  # type: ignore[attr-defined]  # evaluate is a generator

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next trial into this actor, which saves its start-up of several seconds."""
        self.cleanup()
        self._begin(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial that is interrupted starts again."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, see `save_checkpoint`."""


def _new_timer(after_s: float) -> threading.Timer:
    """Ends this process, and thereby its engine, unless it is cancelled before."""
    timer = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    return timer


def trainable(context: TrialContext) -> Any:
    """The trainable with its study's context and the resources of each configuration."""

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        engine, flags = context.rig(config["number"]).engine, config["flags"]
        gpus = 0 if context.virtual else engine.gpus(flags)  # so that one actor takes every trial
        held = {"CPU": config["cpus"], "GPU": gpus}
        elsewhere = {NODE_ID: f"!in({','.join(avoid)})"} if (avoid := config["avoid"]) else {}
        where = [{**selector(context.accelerator), **elsewhere}]
        return tune.PlacementGroupFactory([held], strategy="STRICT_PACK", bundle_label_selector=where)

    with_context = tune.with_parameters(EngineTrial, context=context)
    placed: Any = tune.with_resources(with_context, resources)
    placed.__name__ = placed.__qualname__ = EngineTrial.__name__  # else Tune's own, in every list of actors
    return placed
