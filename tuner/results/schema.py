"""The versioned Parquet schema: every column of every table, and what a file must hold to be one.

docs/results.md explains the columns.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1


def _schema(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema(fields, metadata={"tuner_schema_version": str(SCHEMA_VERSION)})


_TEXT, _F64, _I32, _I64, _BOOL = pa.string(), pa.float64(), pa.int32(), pa.int64(), pa.bool_()
_TIME = pa.timestamp("us", tz="UTC")

TRIALS = _schema(
    ("study", _TEXT),
    ("trial", _I32),
    ("kind", _TEXT),
    ("config", _TEXT),
    ("command", _TEXT),
    ("gpus", _I32),
    ("gpu_ids", pa.list_(_TEXT)),
    ("gpu_model", _TEXT),
    ("gpu_others", _TEXT),
    ("node", _TEXT),
    ("model", _TEXT),
    ("engine", _TEXT),
    ("engine_version", _TEXT),
    ("simulated", _BOOL),
    ("effective_args", _TEXT),
    ("kv_tokens", _I64),
    ("objective_name", _TEXT),
    ("objective_unit", _TEXT),
    ("objective", _F64),
    ("score", _F64),
    ("loss", _F64),
    ("objectives", _TEXT),
    ("slo_met", _BOOL),
    ("slo_hard_failed", _BOOL),
    ("slo_worst", _TEXT),
    ("slo_worst_violation", _F64),
    ("failure_stage", _TEXT),
    ("failure_cause", _TEXT),
    ("failure_detail", _TEXT),
    ("failure_evidence", _TEXT),
    ("failure_progress", _F64),
    ("exit_code", _I32),
    ("stopped_early", _BOOL),
    ("curve", _TEXT),
    ("attempts", _I32),
    ("lost", _TEXT),
    ("expected_gain", _F64),
    ("levels_planned", _I32),
    ("levels_finished", _I32),
    ("max_load", _F64),
    ("max_loads", _TEXT),
    ("started_at", _TIME),
    ("start_s", _F64),
    ("duration_s", _F64),
    ("log_path", _TEXT),
)

LATENCIES = ("latency", "ttft", "tpot", "itl")
STATISTICS = ("mean", "p50", "p90", "p95", "p99")

STEPS = _schema(
    ("study", _TEXT),
    ("trial", _I32),
    ("step", _I32),
    ("scenario", _TEXT),
    ("concurrency", _I32),
    ("request_rate", _F64),
    ("duration_s", _F64),
    ("requests_ok", _I32),
    ("requests_failed", _I32),
    ("errors", _TEXT),
    *((f"{latency}_{statistic}_s", _F64) for latency in LATENCIES for statistic in STATISTICS),
    *((f"{latency}_ci95_s", _F64) for latency in LATENCIES),
    *((f"{latency}_n", _I64) for latency in LATENCIES),
    ("input_tok_s", _F64),
    ("output_tok_s", _F64),
    ("total_tok_s", _F64),
    ("total_tok_s_per_gpu", _F64),
    ("output_tok_s_per_gpu", _F64),
    ("requests_per_s", _F64),
    ("goodput", _F64),
    ("success_rate", _F64),
    ("client_lag_s", _F64),
    ("client_lag_mean_s", _F64),
    ("client_lag_p99_s", _F64),
    ("client_cpu", _F64),
    ("client_limit", _TEXT),
    ("late_p99_s", _F64),
    ("requests_held", _I32),
    ("engine_running_mean", _F64),
    ("engine_queued_mean", _F64),
    ("engine_queued_max", _F64),
    ("engine_kv_use_mean", _F64),
    ("engine_kv_use_max", _F64),
    ("engine_cache_hit_rate", _F64),
    ("gpu_memory_max_bytes", _F64),
    ("gpu_memory_max_share", _F64),
    ("gpu_use_mean", _F64),
    ("gpu_power_mean_w", _F64),
    ("gpu_energy_j", _F64),
    ("gpu_energy_per_token_j", _F64),
    ("gpu_energy_per_output_token_j", _F64),
)

REQUESTS = _schema(
    ("study", _TEXT),
    ("trial", _I32),
    ("step", _I32),
    ("request", _I32),
    ("sent_s", _F64),
    ("ttft_s", _F64),
    ("tpot_s", _F64),
    ("e2e_s", _F64),
    ("input_tokens", _I64),
    ("output_tokens", _I64),
    ("error", _TEXT),
    ("http_status", _I32),
    ("late_s", _F64),
)

ABOUT: dict[str, tuple[type, ...]] = {  # what is asked of a study.json, and what it has to be
    **dict.fromkeys(("study", "engine"), (str,)),
    **dict.fromkeys(("engine_version", "kind", "ended_early", "base_url"), (str, type(None))),
    "planned_trials": (int,),
    "space_size": (int, float, type(None)),
    "task": (dict,),
    **dict.fromkeys(("task.task_name", "task.description", "task.runtime_image_tag"), (str,)),
    **dict.fromkeys(
        ("task.model", "task.parameters", "task.optimization", "task.slo", "task.engine"), (dict,)
    ),
    **dict.fromkeys(("task.model.id_or_path", "task.model.namespace"), (str,)),
    **dict.fromkeys(("task.engine.args", "task.engine.env"), (dict,)),
    "task.optimization.objective": (str, list),
}
TABLES = {"requests": REQUESTS, "steps": STEPS, "trials": TRIALS}  # in the order of writing


JSON_COLUMNS = (
    ("trials", "config"),
    ("trials", "effective_args"),
    ("trials", "objectives"),
    ("trials", "curve"),
    ("trials", "max_loads"),
    ("steps", "errors"),
)


def decoded(text: Any) -> dict[str, Any]:
    """A JSON column's value; a null is an empty object. ValueError where it is no object."""
    value = json.loads(text) if isinstance(text, str) else {}
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} is not a JSON object")
    return value


def with_missing_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with nulls for the columns that an earlier version did not write."""
    if "trial" not in table.column_names or "study" not in table.column_names:
        raise ValueError("is no table of this schema")
    for column in schema:
        if column.name not in table.column_names:
            table = table.append_column(column, pa.nulls(len(table), column.type))
    return table


def require_sound(table: pa.Table, name: str, file: str) -> None:
    """ValueError or ArrowException for what is not a trial's, though it has the columns: a copy, say."""
    number = re.fullmatch(r"([0-9]{5,9})\.parquet", file)
    if number is None:
        raise ValueError("is not called like a trial's")
    table.validate(full=True)  # also that texts are UTF-8
    if any(trial != int(number[1]) for trial in table["trial"].to_pylist()):
        raise ValueError("holds another trial's rows")
    if name == "trials" and len(table) != 1:
        raise ValueError(f"holds {len(table)} rows, and a trial has one")
    for column in (column for owner, column in JSON_COLUMNS if owner == name):
        list(map(decoded, table[column].to_pylist()))
