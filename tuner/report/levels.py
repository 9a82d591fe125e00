"""What a load level showed, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tuner.report import words
from tuner.results import LATENCIES, STATISTICS

_NAMES = {"latency": "e2e", "ttft": "TTFT", "tpot": "TPOT", "itl": "ITL"}


def level_table(row: Mapping[str, Any]) -> RenderableType:
    """A row of `steps`: latencies by statistic, in milliseconds, and the rates beneath."""
    sent = row["requests_ok"] + row["requests_failed"]
    title = Text.assemble((words.level_text(row), "bold"), f": {sent} requests in {row['duration_s']:.1f} s")
    if row["requests_failed"]:
        title.append(f", {row['requests_failed']} failed", style="red")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("ms", style="dim")
    for column in (*STATISTICS, "95 % of mean", "of"):
        table.add_column(column, justify="right")
    for name in LATENCIES:
        values = [row[f"{name}_{statistic}_s"] for statistic in STATISTICS]
        if not pd.isna(values[0]):
            width = row[f"{name}_ci95_s"]
            interval = "" if pd.isna(width) else f"±{words.digits(1e3 * width)}"
            count = row[f"{name}_n"]
            of = "" if pd.isna(count) else f"{int(count):,}"
            table.add_row(_NAMES[name], *(words.digits(1e3 * value) for value in values), interval, of)
    rates = (
        f"{words.digits(row['output_tok_s'])} output tok/s, {words.digits(row['total_tok_s'])} tok/s with "
        f"input, {words.digits(row['requests_per_s'])} requests/s"
    )
    if not pd.isna(row["goodput"]):
        rates += f", {words.digits(row['goodput'])} of them within the SLOs"
    if row["total_tok_s"] != row["total_tok_s_per_gpu"]:
        rates += f", {words.digits(row['total_tok_s_per_gpu'])} tok/s on each GPU"
    for others in (_engine_text(row), _gpu_text(row), _client_text(row)):
        rates += f"\n{others}" if others else ""
    if not pd.isna(row["client_limit"]):
        title.append(f"\nnot to be trusted, {words.limit_text(row['client_limit'])}", style="red")
    return Group(title, Padding(table, (0, 0, 0, 2)), Padding(Text(rates), (0, 0, 1, 2)))


def _engine_text(row: Mapping[str, Any]) -> str:
    """What the engine said of itself; empty where it said nothing."""
    known = {name: row[f"engine_{name}"] for name in ("running_mean", "queued_mean", "kv_use_mean")}
    parts = [
        text.format(words.digits(known[name], trim=True))
        for name, text in (("running_mean", "{} running"), ("queued_mean", "{} queued"))
        if not pd.isna(known[name])
    ]
    if not pd.isna(known["kv_use_mean"]):
        parts.append(f"KV cache {words.percent(known['kv_use_mean'])} full")
    if not pd.isna(row["engine_cache_hit_rate"]):
        parts.append(f"prefix cache hits {words.percent(row['engine_cache_hit_rate'])}")
    return f"the engine: {', '.join(parts)}" if parts else ""


def _gpu_text(row: Mapping[str, Any]) -> str:
    """What the GPUs did; empty where nobody asked them."""
    parts = []
    if not pd.isna(row["gpu_use_mean"]):
        parts.append(f"{words.percent(row['gpu_use_mean'])} of the time at work")
    if not pd.isna(row["gpu_memory_max_bytes"]):
        gib = words.digits(row["gpu_memory_max_bytes"] / 2**30)
        parts.append(f"{gib} GiB in use at most ({words.percent(row['gpu_memory_max_share'])})")
    if not pd.isna(row["gpu_power_mean_w"]):
        parts.append(f"{words.digits(row['gpu_power_mean_w'])} W")
    if not pd.isna(row["gpu_energy_per_output_token_j"]):
        parts.append(f"{words.digits(row['gpu_energy_per_output_token_j'])} J per output token")
    return f"the GPUs: {', '.join(parts)}" if parts else ""


def _client_text(row: Mapping[str, Any]) -> str:
    """How late the load client was itself; empty for a tool that does not tell."""
    if pd.isna(row["client_lag_mean_s"]):
        return ""
    mean, p99 = (words.digits(1e3 * row[f"client_lag_{statistic}_s"]) for statistic in ("mean", "p99"))
    return f"the client: {mean} ms late on average, {p99} ms at p99, CPU {words.percent(row['client_cpu'])}"
