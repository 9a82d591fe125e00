"""`tuner calibrate`: the simulator's constants, fitted to the trials of a study.

Every configuration of the study is simulated, load level by load level, and its steps are timed with other
constants until latencies agree. What that is worth is told by configurations that were held out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd

from tuner.engines.simulator.constants import DEFAULT, FITTED_NAMES, Constants
from tuner.engines.simulator.fit import WEIGHTS, Latencies, Run, fit, held_out, mean_errors
from tuner.engines.simulator.flags import effect_of
from tuner.engines.simulator.gpus import GPUS, gpu_of
from tuner.engines.simulator.in_process import VirtualEngine, VirtualServer
from tuner.engines.simulator.models import ModelNotFound, find_model
from tuner.errors import UsageError
from tuner.failures import TrialFailed
from tuner.load.base import Target
from tuner.load.virtual import VirtualClient
from tuner.report.words import SIMULATED, percent
from tuner.results import StudyResults
from tuner.rig import SIMULATED_FLAGS, with_args
from tuner.space import config_key
from tuner.task import Task, make_task
from tuner.workload import LoadLevel

LEAST = 6  # configurations: the constants are seven, and a prior stands in for what is not told
MOST = 60  # each takes some tenths of a second
FOLDS = 5
LEAST_GAIN = 0.05  # of the error, on what was held out
_NAMES = {"e2e": "latency", "tpot": "TPOT", "ttft": "TTFT"}
_ALONE = (  # flags whose trials tell of something else
    *("speculative-algorithm", "dp-size", "data-parallel-size", "pp-size", "pipeline-parallel-size"),
)

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Calibration:
    """What was fitted to `configurations` of a study, and how far off that is.

    Errors are mean absolute ones, as shares, by latency: `before` with the simulator's own constants, `after`
    with the fitted ones, `held_out` of each configuration with constants fitted to the other folds.
    """

    study: str
    model: str
    gpu: str
    simulated: bool
    configurations: int
    levels: int
    constants: Constants
    before: Mapping[str, float]
    after: Mapping[str, float]
    held_out: Mapping[str, float]

    @property
    def helps(self) -> bool:
        """Whether it is clearly nearer than before on what it was not fitted to, by the fit's own weights."""
        held_out, before = (
            sum(WEIGHTS[name] * error for name, error in errors.items())
            for errors in (self.held_out, self.before)
        )
        return held_out < (1 - LEAST_GAIN) * before

    def document(self) -> dict[str, Any]:
        """What is written to a file, which `--calibration` takes."""
        errors = {"before": self.before, "after": self.after, "held_out": self.held_out}
        return {
            **{"study": self.study, "model": self.model, "gpu": self.gpu, "simulated": self.simulated},
            "constants": {name: getattr(self.constants, name) for name in FITTED_NAMES},
            **{"configurations": self.configurations, "levels": self.levels, "errors": errors},
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        if self.simulated:
            yield SIMULATED
        yield (
            f"Fitted to {self.configurations} configurations ({self.levels} load levels) of {self.study}: "
            f"{self.model} on {self.gpu}"
        )
        yield f"{'mean error':<22}" + "".join(f"{_NAMES[name]:>10}" for name in self.before)
        for name, errors in (
            ("before", self.before),
            ("after", self.after),
            (f"held out, {FOLDS} folds", self.held_out),
        ):
            yield f"{name:<22}" + "".join(f"{percent(errors[each]):>10}" for each in self.before)
        yield f"{'constant':<22}{'before':>10}{'after':>10}"
        for name in FITTED_NAMES:
            yield f"{name:<22}{getattr(DEFAULT, name):>10.3g}{getattr(self.constants, name):>10.3g}"


def calibrate(results: StudyResults, *, gpu: str | None = None, seed: int = 0) -> Calibration:
    """The constants that match the study; UsageError where it cannot tell.

    `gpu` is the simulator's name for what it ran on, where the results do not say.
    """
    study = str(results.about["study"])
    task, gpu = _simulated(results, study, gpu)
    measured = _measured(results, seed)
    if len(measured) < LEAST:
        raise UsageError(
            f"study {study} has {len(measured)} configurations that were measured and are simulated; a "
            f"calibration needs at least {LEAST}"
        )
    load_seed = int(results.about.get("seed") or 0)
    runs = _runs(task, measured, DEFAULT, load_seed)
    if len({run.labels["config"] for run in runs}) < LEAST:
        raise UsageError(f"study {study}: the simulator would not start its configurations on {gpu}")
    before = mean_errors(run.errors(DEFAULT) for run in runs)
    constants = fit(runs, DEFAULT)
    runs = _runs(task, measured, constants, load_seed)  # with other constants time lets others through
    constants = fit(runs, DEFAULT)
    places = {key: place for place, key in enumerate(dict.fromkeys(run.labels["config"] for run in runs))}
    return Calibration(
        study=study,
        model=task.model.id_or_path,
        gpu=gpu,
        simulated=bool(results.about.get("simulated")),
        configurations=len(places),
        levels=len(runs),
        constants=constants,
        before=before,
        after=mean_errors(run.errors(constants) for run in runs),
        held_out=mean_errors(held_out(runs, [places[run.labels["config"]] % FOLDS for run in runs], DEFAULT)),
    )


def _simulated(results: StudyResults, study: str, gpu: str | None) -> tuple[Task, str]:
    """The study's task as the simulator runs it, without noise, and the GPU."""
    if (engine := results.about["engine"]) not in SIMULATED_FLAGS:
        raise UsageError(f"study {study} is of {engine}; the simulator is one of SGLang")
    task = make_task(results.about["task"], study)
    try:
        find_model(task.model.id_or_path)
    except ModelNotFound as unknown:
        raise UsageError(f"the simulator does not know the model {unknown}") from unknown
    names = {gpu_of(model) or model for model in results.trials["gpu_model"].dropna()}
    if gpu is None and engine == "simulator":
        gpu = str(task.engine.args.get("gpu", "h100"))
    if gpu is None and len(names) == 1:
        gpu = names.pop()
    if gpu not in GPUS:
        ran_on = gpu or ", ".join(sorted(names)) or "GPUs that it does not name"
        raise UsageError(f"study {study} ran on {ran_on}; give --gpu, one of {', '.join(sorted(GPUS))}")
    kept = {flag: value for flag, value in task.engine.args.items() if effect_of(flag)}
    kept.pop("calibration", None)
    return with_args(task, {**kept, "gpu": gpu, "noise": 0}), gpu


def _measured(results: StudyResults, seed: int) -> dict[str, tuple[Config, pd.DataFrame]]:
    """By configuration: its flags, and its finished load levels, those of repeats as well."""
    trials = results.trials[results.trials["failure_cause"].isna() & (results.trials["levels_finished"] > 0)]
    fixed = results.about["task"].get("engine", {}).get("args", {})
    found: dict[str, tuple[Config, list[pd.DataFrame]]] = {}
    for number, config in zip(trials["trial"], trials["config"], strict=True):
        if any({**fixed, **config}.get(flag) not in (None, False, 1) for flag in _ALONE):
            continue
        steps = results.steps[results.steps["trial"] == number]
        found.setdefault(config_key(config), (config, []))[1].append(steps)
    drawn = Random(seed).sample(sorted(found), min(MOST, len(found)))  # noqa: S311  reproducible, no secret
    return {key: (found[key][0], pd.concat(found[key][1])) for key in drawn}


def _runs(
    task: Task, measured: Mapping[str, tuple[Config, pd.DataFrame]], constants: Constants, seed: int
) -> list[Run]:
    """A run for each load level of each configuration that the simulator would start, with `constants`."""
    text = json.dumps({name: getattr(constants, name) for name in FITTED_NAMES})
    task = with_args(task, {**task.engine.args, "calibration": text})
    runs = []
    for key, (config, steps) in measured.items():
        known = {flag: value for flag, value in config.items() if effect_of(flag)}
        engine = VirtualEngine(task)
        try:
            engine.check(known)
            with engine.launch(known, gpu_ids=[], log_path=Path(os.devnull), timeout_s=1) as server:
                assert isinstance(server, VirtualServer)
                for level in task.levels(seed):
                    if (latencies := _latencies(steps, level)) is not None:
                        run = _run(task, server, level, constants, latencies, key)
                        runs += [] if run is None else [run]
        except TrialFailed:
            continue
    return runs


def _latencies(steps: pd.DataFrame, level: LoadLevel) -> Latencies | None:
    """What was measured at `level`, repeats averaged; None where nothing was."""
    load = (
        steps["concurrency"] == level.concurrency
        if level.request_rate is None
        else steps["request_rate"] == level.request_rate
    )
    rows = steps[load & (steps["scenario"] == str(level.scenario))]
    means = [rows[f"{name}_mean_s"].mean() for name in ("ttft", "tpot", "latency")]
    ttft, tpot, e2e = (None if pd.isna(mean) else float(mean) for mean in means)
    return None if e2e is None else Latencies(ttft, tpot, e2e)


def _run(
    task: Task, server: VirtualServer, level: LoadLevel, constants: Constants, measured: Latencies, key: str
) -> Run | None:
    if not task.benchmark.keep_cache:
        server.flush_cache()
    server.trace = []
    watched = _Watched(server)
    target = Target(server.base_url, server.model, task.benchmark.additional_params)
    limit_s = task.optimization.timeout_per_iteration
    VirtualClient(lambda: watched).run(target, level, healthy=lambda: True, timeout_s=limit_s)
    requests = [each for each in watched.seen[level.warmup_requests :] if each[3]]
    if not requests:
        return None
    return Run.of(server.trace, requests, constants, measured, config=key)


class _Watched:
    """Notes of each request when it was sent, its first and last token, and its tokens, 0 where it failed."""

    def __init__(self, server: VirtualServer) -> None:
        self._server = server
        self._places: dict[Any, int] = {}
        self.seen: list[tuple[float, float, float, int]] = []

    @property
    def now_s(self) -> float:
        return self._server.now_s

    @now_s.setter
    def now_s(self, value: float) -> None:
        self._server.now_s = value

    def submit(self, body: bytes, at_s: float) -> Any:
        taken = self._server.submit(body, at_s)
        self._places[taken] = len(self.seen)
        self.seen.append((at_s, 0.0, 0.0, 0))
        return taken

    def advance(self, until_s: float) -> Sequence[Any] | None:
        heard = self._server.advance(until_s)
        for request in heard or ():
            sent, first, _, _ = self.seen[self._places[request]]
            tokens = request.generated if request.finish_reason == "length" else 0
            self.seen[self._places[request]] = sent, first or self.now_s, self.now_s, tokens
        return heard

    def abort(self, request: Any) -> None:
        self._server.abort(request)
