"""A trial's reports as rows of the results tables: the one place that maps what was seen to columns."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from tuner.engines.base import Config, Engine
from tuner.evaluate import Report
from tuner.measure import Step
from tuner.results import LATENCIES, STATISTICS, ResultStore
from tuner.task import Task


@dataclass(frozen=True)
class TrialInfo:
    """What identifies a trial and where it ran."""

    number: int
    kind: str  # "baseline", "search", "confirm" or "bench"
    config: Config
    gpu_ids: Sequence[str]
    started_at: datetime
    duration_s: float
    node: str
    log_path: str
    node_id: str = ""  # Ray's
    accelerator: str = ""  # the kind of the node's GPUs, where Ray knows it
    stopped_early: bool = False
    curve: Mapping[float, float] = field(default_factory=dict)  # the loss at each share of the load
    attempts: int = 1  # 0: it was refused before it was started
    lost: Sequence[str] = ()  # what became of the attempts before the last
    expected_gain: float | None = None  # by the sampler that proposed it, as a share of the objective


def this_node() -> str:
    """The name of this machine."""
    return socket.gethostname()


def record(
    store: ResultStore, task: Task, engine: Engine, info: TrialInfo, report: Report, steps: Sequence[Step]
) -> dict[str, Any]:
    """Writes a trial's three tables; returns its row of `trials`. `report` is its last."""
    key = {"study": store.study, "trial": info.number}
    row = {**key, **trial_row(task, engine, info, report)}
    store.write_trial(
        row,
        [{**key, "step": number, **step_row(step)} for number, step in enumerate(steps)],
        [
            {**key, "step": number, **request}
            for number, step in enumerate(steps)
            for request in request_rows(step)
        ],
    )
    return row


def trial_row(task: Task, engine: Engine, info: TrialInfo, report: Report) -> dict[str, Any]:
    """Columns of `trials` without study and trial."""
    slo, failure, gpus = report.score.slo, report.failure, engine.gpus(info.config)
    return {
        "kind": info.kind,
        "config": json.dumps(dict(info.config)),
        "command": json.dumps(engine.launch_command(info.config)),
        "gpus": gpus,
        "gpu_ids": list(info.gpu_ids),
        "gpu_model": report.gpus[0].model if report.gpus else (info.accelerator if gpus else "") or None,
        "gpu_others": json.dumps([asdict(use) for use in report.gpus]),
        "node": info.node,
        "model": task.model.id_or_path,
        "engine": engine.name,
        "engine_version": report.info.version or None,
        "simulated": engine.simulated,
        "effective_args": _as_json(report.info.effective_args),
        "kv_tokens": report.info.kv_tokens,
        "objective_name": task.objective.name,
        "objective_unit": task.objective.unit_on(gpus),
        "objective": report.score.objective,
        "score": report.score.score,
        "loss": report.score.loss,
        "objectives": _objectives(task, report),
        "slo_met": slo.met if report.finished else None,
        "slo_hard_failed": slo.hard_failed if report.finished else None,
        "slo_worst": (slo.worst or None) if report.finished else None,
        "slo_worst_violation": slo.worst_violation if slo.worst and report.finished else None,
        "failure_stage": failure and str(failure.stage),
        "failure_cause": failure and str(failure.cause),
        "failure_detail": failure and failure.detail,
        "failure_evidence": failure and failure.evidence,
        "failure_progress": failure and failure.progress,
        "exit_code": failure and failure.exit_code,
        "stopped_early": info.stopped_early,
        "curve": json.dumps({f"{share:.6g}": loss for share, loss in info.curve.items()}),
        "attempts": info.attempts,
        "lost": "\n".join(info.lost) or None,
        "expected_gain": info.expected_gain,
        "levels_planned": report.planned,
        "levels_finished": report.finished,
        "max_load": min(report.max_loads.values(), default=None),
        "max_loads": json.dumps(dict(report.max_loads)) if report.max_loads else None,
        "started_at": info.started_at,
        "start_s": report.start_s,
        "duration_s": info.duration_s,
        "log_path": info.log_path,
    }


def _as_json(said: Mapping[str, Any]) -> str:
    """What a server said; null for what is not finite, which Python would write though JSON knows none."""
    return json.dumps(json.loads(json.dumps(dict(said)), parse_constant=lambda name: None))


def _objectives(task: Task, report: Report) -> str | None:
    """All objectives where there are several, as JSON: by name objective, score and loss."""
    if not report.others:
        return None
    every = zip(task.objectives, (report.score, *report.others), strict=True)
    return json.dumps(
        {
            objective.name: {"objective": found.objective, "score": found.score, "loss": found.loss}
            for objective, found in every
        }
    )


def step_row(step: Step) -> dict[str, Any]:
    """Columns of `steps` without study, trial and step."""
    metrics, lag, closed = step.metrics, step.load.client_lag, step.level.request_rate is None
    row: dict[str, Any] = {
        "scenario": str(step.level.scenario),
        "concurrency": step.level.concurrency if closed else None,
        "request_rate": step.level.request_rate,
        "duration_s": metrics.duration_s,
        "requests_ok": metrics.requests_ok,
        "requests_failed": metrics.requests_failed,
        "errors": json.dumps(metrics.errors),
        "input_tok_s": metrics.input_tok_s,
        "output_tok_s": metrics.output_tok_s,
        "total_tok_s": metrics.total_tok_s,
        "total_tok_s_per_gpu": metrics.total_tok_s / metrics.gpus,
        "output_tok_s_per_gpu": metrics.output_tok_s / metrics.gpus,
        "requests_per_s": metrics.requests_per_s,
        "goodput": metrics.goodput,
        "success_rate": metrics.success_rate,
        "client_lag_s": step.load.client_lag_s,
        "client_lag_mean_s": None if lag is None else lag.mean,
        "client_lag_p99_s": None if lag is None else lag.p99,
        "client_cpu": step.load.client_cpu,
        "client_limit": step.client_limit,
        "late_p99_s": None if metrics.late is None else metrics.late.p99,
        "requests_held": None if closed else step.load.held,
        **{f"engine_{name}": value for name, value in asdict(step.engine).items()},
        **{f"gpu_{name}": value for name, value in asdict(step.gpu).items()},
        "gpu_energy_per_token_j": _per_token(step.gpu.power_mean_w, metrics.total_tok_s),
        "gpu_energy_per_output_token_j": _per_token(step.gpu.power_mean_w, metrics.output_tok_s),
    }
    for latency in LATENCIES:
        distribution = getattr(metrics, latency)
        for statistic in STATISTICS:
            value = None if distribution is None else getattr(distribution, statistic)
            row[f"{latency}_{statistic}_s"] = value
        row[f"{latency}_ci95_s"] = None if distribution is None else distribution.ci95
        row[f"{latency}_n"] = None if distribution is None else distribution.n
    return row


def _per_token(power_w: float | None, tok_s: float) -> float | None:
    """Joules; None where the power is not known, or no token came."""
    return None if power_w is None or tok_s == 0 else power_w / tok_s


def request_rows(step: Step) -> list[dict[str, Any]]:
    """Columns of `requests` without study, trial and step."""
    return [
        {
            "request": request.number,
            "sent_s": request.sent_s,
            "ttft_s": request.ttft_s,
            "tpot_s": request.tpot_s,
            "e2e_s": request.e2e_s,
            "input_tokens": request.input_tokens,
            "output_tokens": request.output_tokens,
            "error": None if request.error is None else str(request.error),
            "http_status": request.status,
            "late_s": request.late_s,
        }
        for request in step.load.records
    ]
