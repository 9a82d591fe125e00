"""A trial on the cluster: the Tune Trainable and its placement group, a thin shell around `evaluate`.

One Tune iteration is one load level, so a scheduler can stop a trial between levels. A *class*
trainable, because `cleanup` is given the time that an engine needs to leave its GPUs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray import tune

from tuner.accelerators import kind_of, selector
from tuner.engines import make_engine
from tuner.evaluate import Report, evaluate
from tuner.load import LOAD_GENERATORS
from tuner.results import data_home
from tuner.rows import TrialInfo, this_node
from tuner.search import ELAPSED, SHARE, metric_names
from tuner.task import Task


@dataclass(frozen=True)
class TrialContext:
    """What every trial of a study shares. No trial holds more than `node_cpus` CPUs, whatever it asks.

    `secrets` are the driver's variables that the task refers to: a node need not have them. `accelerator`
    is the kind of GPU that trials need, empty for any.
    """

    study: str
    task: Task
    engine: str
    seed: int
    node_cpus: float
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    accelerator: str = ""


def engine_log(study: str, number: int) -> Path:
    """Where the engine of a trial writes, on the node where it runs."""
    return data_home() / "logs" / study / f"trial-{number:05d}.log"


class EngineTrial(tune.Trainable):
    """Runs one configuration; its config is `{"number", "kind", "flags"}` (see `search.Suggestion`)."""

    def setup(self, config: dict[str, Any], context: TrialContext | None = None) -> None:
        assert context is not None
        self._context = context
        os.environ.update(context.secrets)
        self._begin(config)

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
            accelerator=kind_of(ray.get_runtime_context().get_node_labels()),
            log_path=str(engine_log(context.study, config["number"])),
        )
        self._began = time.monotonic()
        self._reports: Iterator[Report] = evaluate(
            context.task,
            config["flags"],
            engine=make_engine(context.task, context.engine),
            load=LOAD_GENERATORS[context.task.benchmark.tool],
            seed=context.seed,
            gpu_ids=self._info.gpu_ids,
            log_path=Path(self._info.log_path),
            glances=context.task.stops_trials and config["kind"] != "confirm",
        )

    def step(self) -> dict[str, Any]:
        """One load level: its report, the loss so far, and whether the trial is over."""
        report = next(self._reports)
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


def trainable(context: TrialContext) -> Any:
    """The trainable with its study's context and the resources of each configuration."""

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        engine, flags = make_engine(context.task, context.engine), config["flags"]
        held = {"CPU": min(engine.cpus(flags), context.node_cpus), "GPU": engine.gpus(flags)}
        where = [selector(context.accelerator)]
        return tune.PlacementGroupFactory([held], strategy="STRICT_PACK", bundle_label_selector=where)

    with_context = tune.with_parameters(EngineTrial, context=context)
    return tune.with_resources(with_context, resources)
