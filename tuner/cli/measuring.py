"""`tuner trial` and `tuner bench`: one configuration, or a server that runs already, in the foreground."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuner.cli.options import engine_option, examples, results_option, task_argument, virtual_option
from tuner.cli.screen import console_for, show
from tuner.errors import UsageError, told_of
from tuner.results import data_home

if TYPE_CHECKING:
    from tuner.engines.base import Value
    from tuner.evaluate import Report


@click.command(
    epilog=examples(
        "tuner trial configs/quickstart.json --set tp-size=2 --set schedule-policy=lpm\n"
        "tuner trial task.json          (the engine's defaults)"
    )
)
@task_argument
@engine_option
@click.option("--set", "flags", multiple=True, metavar="FLAG=VALUE", help="A flag of the engine; repeatable.")
@virtual_option
@click.option("--json", "as_json", is_flag=True, help="Print the trial's row as JSON instead.")
def trial(task_path: Path, engine: str | None, flags: tuple[str, ...], virtual: bool, as_json: bool) -> None:
    """Runs one configuration of TASK in the foreground, without Ray; exit code 4 where it fails."""
    from tuner.evaluate import evaluate
    from tuner.live import report_line
    from tuner.report.words import engine_text, max_loads_text
    from tuner.rig import rig
    from tuner.rows import TrialInfo, this_node, trial_row
    from tuner.task import load_task

    task = load_task(task_path)
    config = config_of(flags)
    seed = task.optimization.seed or 0
    with told_of(str(task_path)):
        measured_by = rig(task, engine, virtual=virtual, seed=seed)
    adapter = measured_by.engine
    version = adapter.version()
    began, clock = datetime.now(UTC), time.monotonic()
    log_path = data_home() / "logs" / f"trial-{began:%Y%m%d-%H%M%S-%f}.log"
    if not as_json:
        simulated = " (SIMULATED)" if adapter.simulated else ""
        click.echo(f"{engine_text(adapter.name, version)}{simulated}, log: {log_path}")
    if not task.space.allows(config):
        click.echo("warning: the task's constraints forbid this configuration: no study tries it", err=True)
    reports = evaluate(
        task,
        config,
        engine=adapter,
        load=measured_by.load,
        clock=measured_by.clock,
        seed=seed,
        gpu_ids=[],
        log_path=log_path,
    )
    with closing(reports):  # type: ignore[type-var]  # evaluate is a generator
        for report in reports:
            if not as_json:
                click.echo(report_line(report))
    info = TrialInfo(
        number=0,
        kind="search" if config else "baseline",
        config=config,
        gpu_ids=[],
        started_at=began,
        duration_s=time.monotonic() - clock,
        node=this_node(),
        log_path=str(log_path),
    )
    row = trial_row(task, adapter, info, report)
    if as_json:
        click.echo(json.dumps(row, indent=2, default=str))
    elif report.failure is None:
        value, penalised = report.score.objective, report.score.score
        click.echo(f"{task.objective.name}: {value:.6g} {row['objective_unit']}, score {penalised:.6g}")
        if report.max_loads:
            at_rate = task.benchmark.request_rate is not None
            found = max_loads_text(report.max_loads, at_rate=at_rate)
            click.echo(f"highest load within the SLOs: {found}")
    sys.exit(4 if report.failure else 0)


@click.command(
    epilog=examples(
        "tuner bench configs/quickstart.json --base-url http://127.0.0.1:30000\n"
        "tuner bench task.json --base-url http://10.0.0.7:8000 --gpus 4 --json > baseline.json\n"
        "tuner bench task.json --base-url https://llm.example.com --api-key-env OPENAI_API_KEY"
    )
)
@task_argument
@click.option("--base-url", required=True, metavar="URL", help="The server, which speaks OpenAI's API.")
@click.option(
    "--gpus", type=click.IntRange(min=0), default=0, help="GPUs that it runs on, for the rates per GPU."
)
@results_option
@click.option("--seed", type=click.IntRange(min=0, max=2**32 - 1), help="In place of the task's seed.")
@click.option(
    "--api-key-env",
    metavar="NAME",
    help="The environment variable with the key that the server asks for; sent as `Authorization: Bearer`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def bench(
    task_path: Path,
    base_url: str,
    gpus: int,
    results: str | None,
    seed: int | None,
    api_key_env: str | None,
    as_json: bool,
) -> None:
    """Measures a server that already runs with the load of TASK; no engine is started, nor Ray.

    Its cache is not flushed; without a seed, prompts are others each time. Ends with exit code 2 where no
    server answers, 3 where it does not keep the SLOs, 4 where a load level could not be measured.
    """
    from tuner.bench import bench as measure
    from tuner.engines.attached import Attached
    from tuner.levels import levels_of
    from tuner.live import report_line
    from tuner.past import seed_of
    from tuner.report import level_table
    from tuner.report.words import SIMULATED, max_loads_text, promises_text
    from tuner.rows import step_row
    from tuner.task import load_task

    task = load_task(task_path)
    server = Attached(task, base_url, gpus, api_key_in(api_key_env))
    seed = seed_of(task, seed, None)
    most = levels_of(task, seed).most
    count = f"up to {most}" if task.benchmark.find else f"{most}"
    console = console_for(stderr=as_json)
    if server.simulated:
        console.print(SIMULATED, style="bold yellow")
    console.print(f"{server.model} at {server.base_url}, load levels: {count}\n", highlight=False)

    def each(report: Report) -> None:
        show(console, report_line(report) if report.step is None else level_table(step_row(report.step)))
        status.update(f"load level {report.finished + 1} of {count}")

    with console.status(f"load level 1 of {count}") as status:
        outcome = measure(task, server, seed=seed, results=results, source=str(task_path), watch=each)
    if as_json:
        click.echo(json.dumps(outcome.document(), indent=2))
    if outcome.kept.max_loads:
        found = max_loads_text(outcome.kept.max_loads, at_rate=task.benchmark.request_rate is not None)
        console.print(f"Max load {found} within the SLOs", highlight=False)
    if outcome.trial["slo_met"] is not None and outcome.trial["slo_worst"]:
        console.print(f"SLOs     {promises_text(outcome.trial)}", highlight=False)
    console.print(f"Results  {outcome.kept.location}", soft_wrap=True, highlight=False)
    sys.exit(outcome.exit_code)


def api_key_in(variable: str | None) -> str:
    """The key in an environment variable; empty where none is named. Its text is in no message."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable() and key):
        raise UsageError(f"--api-key-env: the environment variable {variable} holds no key")
    return key


def config_of(flags: Sequence[str]) -> dict[str, Value]:
    """The configuration of the `--set` options; UsageError where one flag is given twice."""
    config: dict[str, Value] = {}
    for flag, value in map(flag_value, flags):
        if flag in config:
            raise UsageError(f"--set {flag}: is given twice")
        config[flag] = value
    return config


def flag_value(text: str) -> tuple[str, Value]:
    """`tp-size=2` as a flag and its value: JSON where it is JSON, else the text itself."""
    from tuner.task.engine import reserved
    from tuner.task.fields import value_problem

    flag, equals, value = text.partition("=")
    if not equals or not flag:
        raise UsageError(f"--set: must be FLAG=VALUE, got {text!r}")
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    flag = flag.lstrip("-")
    if problem := reserved(flag) or value_problem(parsed):
        raise UsageError(f"--set {flag}: {problem}")
    return flag, parsed
