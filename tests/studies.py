"""Realistic study results for tests: made in memory, or written through `ResultStore`.

A made-up engine answers: its latency depends on tp-size, mem-fraction-static and chunked-prefill-size,
not on schedule-policy, with log-normal requests around it. Everything is seeded.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tuner.failures import Cause, Failure, Stage
from tuner.metrics import Metrics, RequestRecord, summarise
from tuner.objective import OBJECTIVES, Slo, SloTerm, score
from tuner.results import LATENCIES, STATISTICS, TABLES, ResultStore, StudyResults

Config = Mapping[str, Any]

PARAMETERS: dict[str, Any] = {
    "tp-size": [1, 2],
    "mem-fraction-static": [0.7, 0.75, 0.8, 0.85, 0.9],
    "schedule-policy": ["lpm", "fcfs"],
    "chunked-prefill-size": [512, 1024, 2048, 4096],
}
DEFAULTS = {
    "tp-size": 1,
    "mem-fraction-static": 0.88,
    "schedule-policy": "fcfs",
    "chunked-prefill-size": 2048,
}
LOG = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
_STARTED = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
_CHUNKED = {512: 1.25, 1024: 1.08, 2048: 1.0, 4096: 0.97}


@dataclass(frozen=True)
class Made:
    """A study as rows of the result tables."""

    about: dict[str, Any]
    trials: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    requests: list[dict[str, Any]]

    def with_objectives(self, losses: Callable[[Config], Sequence[float]], *names: str) -> Made:
        """With several objectives, of which a configuration has these losses whenever it is measured."""
        self.about["task"]["optimization"]["objective"] = list(names)
        for row in self.trials:
            each = {}
            for name, loss in zip(names, losses(json.loads(row["config"])), strict=True):
                value = math.exp(-loss if OBJECTIVES[name].maximise else loss)
                each[name] = {"objective": value, "score": value, "loss": loss}
            row |= {**each[names[0]], "objectives": json.dumps(each), "objective_name": names[0]}
        return self

    def results(self) -> StudyResults:
        """As `ResultStore.read` would return it, without touching a disk."""
        frames = {
            name: pa.Table.from_pylist(getattr(self, name), schema=schema).to_pandas()
            for name, schema in TABLES.items()
        }
        encoded = ("config", "effective_args", "objectives", "max_loads", "curve")
        for table, column in (*(("trials", name) for name in encoded), ("steps", "errors")):
            texts = frames[table][column]
            frames[table][column] = [json.loads(text) if isinstance(text, str) else {} for text in texts]
        return StudyResults(about=self.about, **frames)

    def write(self, root: Path) -> ResultStore:
        """Written to disk below `root`."""
        store = ResultStore(root, self.about["study"])
        store.create(self.about)
        for trial in self.trials:
            number = trial["trial"]
            steps = [row for row in self.steps if row["trial"] == number]
            store.write_trial(trial, steps, [row for row in self.requests if row["trial"] == number])
        return store


def factor(config: Config) -> float:
    """What `config` multiplies the made-up engine's latency with."""
    args = {**DEFAULTS, **config}
    memory = 1.0 - 0.3 * (float(args["mem-fraction-static"]) - 0.7)
    chunk = _CHUNKED.get(args["chunked-prefill-size"], 1.0)
    return (0.7 if args["tp-size"] == 2 else 1.0) * memory * chunk


def full_memory_fails(config: Config) -> Cause | None:
    """Out of memory where one GPU should give 90 % to the engine."""
    full = config.get("mem-fraction-static", 0.0) >= 0.9 and config.get("tp-size", 1) == 1
    return Cause.OUT_OF_MEMORY if full else None


def never_fails(_: Config) -> Cause | None:
    """For studies without failures."""
    return None


def grid(parameters: Mapping[str, Sequence[Any]], n: int, seed: int = 0) -> list[dict[str, Any]]:
    """`n` different configurations of the grid, shuffled."""
    configs = [
        dict(zip(parameters, values, strict=True)) for values in itertools.product(*parameters.values())
    ]
    np.random.default_rng(seed).shuffle(configs)
    return configs[:n]


def make(
    configs: Sequence[Config] | None = None,
    *,
    objective: str = "minimize_latency",
    parameters: Mapping[str, Any] | None = None,
    terms: Sequence[SloTerm] = (),
    baseline: bool = True,
    fails: Callable[[Config], Cause | None] = full_memory_fails,
    stopped: Sequence[int] = (),
    effect: Callable[[Config], float] = factor,
    noise: float = 0.15,
    sizes: float = 0.0,
    drift: float = 0.0,
    repeats: Sequence[Config] = (),
    simulated: bool = False,
    name: str = "llama-tune",
    description: str = "Bayesian optimization for Llama 3.2-1B",
    levels: Sequence[int] = (4, 8),
    requests: int = 40,
    seed: int = 0,
) -> Made:
    """A study of `configs` (24 of the grid unless told), after the baseline unless told otherwise.

    `stopped` numbers the trials that are stopped after their first load level; `noise` is the standard
    deviation of the logarithm of a request's latency, `sizes` that of its prompt's size, which is the
    same in every trial, `drift` that of a whole run. `repeats` are measured again at the end.
    """
    parameters = PARAMETERS if parameters is None else parameters
    searched = grid(PARAMETERS, 24, seed) if configs is None else list(configs)
    planned: list[tuple[str, Config]] = [("baseline", {})] if baseline else []
    planned += [("search", config) for config in searched]
    first_runs = len(planned)
    planned += [("confirm", config) for config in repeats]
    made = Made(
        about=_about(
            name=name,
            description=description,
            parameters=parameters,
            objective=objective,
            terms=terms,
            simulated=simulated,
            seed=seed,
            planned=first_runs,
            levels=levels,
        ),
        trials=[],
        steps=[],
        requests=[],
    )
    clock = _STARTED
    for number, (kind, config) in enumerate(planned):
        rng = np.random.default_rng([seed, number])
        cause = fails(config)
        finished = [] if cause else list(levels[:1] if number in stopped else levels)
        prompts = np.exp(np.random.default_rng(seed).normal(0.0, sizes, requests)) * effect(config)
        prompts *= math.exp(np.random.default_rng([seed, number, 1]).normal(0.0, drift))
        measured = [_level(rng, prompts, concurrency, noise) for concurrency in finished]
        gpus = {**DEFAULTS, **config}["tp-size"]
        promises = Slo(tuple(terms)).of_each_request or {"latency": 1e6}  # of none, all is goodput
        metrics = [
            summarise(records, window_s=_end_s(records), gpus=gpus, promises=promises) for records in measured
        ]
        for step, (concurrency, level, records) in enumerate(zip(finished, metrics, measured, strict=True)):
            made.steps.append(_step(name, number, step, concurrency, level))
            made.requests.extend(_requests(name, number, step, records))
        failure = Failure(Stage.START, cause, f"{cause} while loading weights", LOG, -9) if cause else None
        judged = score(OBJECTIVES[objective], Slo(tuple(terms)), metrics, failure)
        duration = 45.0 + 35.0 * len(finished) + float(rng.uniform(0, 20))
        made.trials.append(
            {
                "study": name,
                "trial": number,
                "kind": kind,
                "config": json.dumps(config),
                "command": json.dumps(["python", "-m", "sglang.launch_server", *_argv(config)]),
                "gpus": gpus,
                "gpu_ids": [str(gpu) for gpu in range(gpus)],
                "node": "node-1",
                "model": "llama-3-2-1b-instruct",
                "engine": "sglang",
                "engine_version": "0.5.2",
                "simulated": simulated,
                "effective_args": json.dumps({} if cause else {**DEFAULTS, **config}),
                "kv_tokens": 250_000,
                "objective_name": objective,
                "objective_unit": OBJECTIVES[objective].unit,
                "objective": judged.objective,
                "score": judged.score,
                "loss": judged.loss,
                "slo_met": judged.slo.met,
                "slo_hard_failed": judged.slo.hard_failed,
                "slo_worst": judged.slo.worst,
                "slo_worst_violation": judged.slo.worst_violation,
                "failure_stage": failure and str(failure.stage),
                "failure_cause": failure and str(failure.cause),
                "failure_detail": failure and failure.detail,
                "failure_evidence": failure and failure.evidence,
                "failure_progress": failure and failure.progress,
                "exit_code": failure and failure.exit_code,
                "stopped_early": number in stopped,
                "curve": json.dumps({} if cause else _curve(objective, terms, metrics, len(levels))),
                "attempts": 1,
                "levels_planned": len(levels),
                "levels_finished": len(finished),
                "started_at": clock,
                "start_s": 40.0,
                "duration_s": duration,
                "log_path": f"logs/{number:05d}.log",
            }
        )
        clock += timedelta(seconds=duration + 2)
    return made


def _curve(
    objective: str, terms: Sequence[SloTerm], seen: Sequence[Metrics], levels: int
) -> dict[str, float]:
    """The loss after each load level, by the share of all that was seen then."""
    judged = [
        score(OBJECTIVES[objective], Slo(tuple(terms)), seen[: count + 1]) for count in range(len(seen))
    ]
    return {f"{(count + 1) / levels:.6g}": each.loss for count, each in enumerate(judged)}


def _about(
    *,
    name: str,
    description: str,
    parameters: Mapping[str, Any],
    objective: str,
    terms: Sequence[SloTerm],
    simulated: bool,
    seed: int,
    planned: int,
    levels: Sequence[int],
) -> dict[str, Any]:
    slo: dict[str, Any] = {"steepness": 0.1}
    for term in terms:
        slo.setdefault(term.latency, {})[term.statistic] = {
            "threshold": term.threshold_s,
            "weight": term.weight,
            "hard_fail": term.hard_fail,
            "fail_ratio": term.fail_ratio,
        }
    listed = [spec for spec in parameters.values() if isinstance(spec, list)]
    return {
        "schema_version": 1,
        "tuner_version": "0.1.0",
        "study": name,
        "task": {
            "task_name": name,
            "description": description,
            "model": {"id_or_path": "llama-3-2-1b-instruct", "namespace": ""},
            "base_runtime": "sglang",
            "parameters": dict(parameters),
            "optimization": {
                "strategy": "bayesian",
                "sampler": "tpe",
                "objective": objective,
                "max_iterations": planned or 30,
            },
            "slo": slo,
            "benchmark": {"traffic_scenarios": ["D(100,100)"], "num_concurrency": list(levels)},
        },
        "source": "task.json",
        "engine": "sglang",
        "engine_version": "0.5.2",
        "simulated": simulated,
        "seed": seed,
        "started_at": _STARTED.isoformat(),
        "planned_trials": planned or 30,
        "space_size": math.prod(map(len, listed)) if len(listed) == len(parameters) else None,
    }


def _level(
    rng: np.random.Generator, prompts: Iterable[float], concurrency: int, noise: float
) -> list[RequestRecord]:
    """A closed loop of `concurrency` clients; requests of 100 input and 100 output tokens."""
    free_at = np.zeros(concurrency)
    records = []
    for size in prompts:
        client = int(free_at.argmin())
        e2e = size * (0.6 + 0.05 * concurrency) * math.exp(rng.normal(0.0, noise))
        records.append(RequestRecord(float(free_at[client]), 0.1 * e2e, e2e, 100, 100))
        free_at[client] += e2e
    return records


def _argv(config: Config) -> list[str]:
    return [text for flag, value in config.items() for text in (f"--{flag}", str(value))]


def _end_s(records: Sequence[RequestRecord]) -> float:
    return max(record.sent_s + (record.e2e_s or 0.0) for record in records)


def _step(study: str, trial: int, step: int, concurrency: int, level: Metrics) -> dict[str, Any]:
    return {
        "study": study,
        "trial": trial,
        "step": step,
        "scenario": "D(100,100)",
        "concurrency": concurrency,
        "duration_s": level.duration_s,
        "requests_ok": level.requests_ok,
        "requests_failed": level.requests_failed,
        "errors": json.dumps(level.errors),
        **{
            f"{latency}_{statistic}_s": getattr(getattr(level, latency), statistic, None)
            for latency in LATENCIES
            for statistic in STATISTICS
        },
        "input_tok_s": level.input_tok_s,
        "output_tok_s": level.output_tok_s,
        "total_tok_s": level.total_tok_s,
        "total_tok_s_per_gpu": level.total_tok_s / level.gpus,
        "output_tok_s_per_gpu": level.output_tok_s / level.gpus,
        "requests_per_s": level.requests_per_s,
        "goodput": level.goodput,
        "success_rate": level.success_rate,
        "client_lag_s": 0.0002,
    }


def _requests(study: str, trial: int, step: int, records: Sequence[RequestRecord]) -> list[dict[str, Any]]:
    return [
        {
            "study": study,
            "trial": trial,
            "step": step,
            "request": number,
            "sent_s": record.sent_s,
            "ttft_s": record.ttft_s,
            "tpot_s": record.tpot_s,
            "e2e_s": record.e2e_s,
            "input_tokens": record.input_tokens,
            "output_tokens": record.output_tokens,
        }
        for number, record in enumerate(records)
    ]
