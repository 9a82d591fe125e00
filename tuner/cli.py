"""The command `tuner`: reads the command line, calls the library, prints. The only module that prints.

Exit codes: 0 done; 1 something broke; 2 what was asked for cannot be done (nothing was started);
3 the study ended and no configuration met its SLOs; 4 it ended and no trial finished; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from tuner.errors import StudyError, TunerError, UsageError
from tuner.results import ResultStore, StudyResults, data_home, default_root, studies

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from tuner.engines.base import Value
    from tuner.evaluate import Report
    from tuner.progress import StudyProgress
    from tuner.task import Task

_results = click.option(
    "--results",
    metavar="DIR-or-URI",
    help="Where studies are kept [default: $XDG_DATA_HOME/autotuner/results].",
)
_engine = click.option("--engine", metavar="NAME", help="The engine, in place of the task's base_runtime.")
_virtual = click.option(
    "--virtual", is_flag=True, help="On the simulator in virtual time: seconds in place of minutes."
)
_calibration = click.option(
    "--calibration", metavar="FILE", type=click.Path(path_type=Path), help="What `tuner calibrate` wrote."
)
_task = click.argument("task_path", metavar="TASK", type=click.Path(path_type=Path))
_study = click.argument("study", required=False)
_num_gpus = click.option(
    "--num-gpus", type=click.IntRange(min=1), help="GPUs, real or logical, of a local Ray cluster."
)
_at_once = click.option(
    "--max-concurrent", type=click.IntRange(min=1), help="Trials at once [default: all that fit]."
)


def _examples(text: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in text.splitlines())


@click.group(
    epilog=_examples("tuner check configs/quickstart.json\ntuner run configs/quickstart.json\ntuner report")
)
@click.version_option(package_name="inference-autotuner", prog_name="tuner")
def cli() -> None:
    """Finds the best flags of an LLM inference engine for a model, its GPUs and a latency promise."""


@cli.command(
    epilog=_examples(
        "tuner run configs/quickstart.json\n"
        "tuner run task.json --engine simulator --num-gpus 8 --seed 1\n"
        "tuner run task.json --resume                     (goes on where it was left)\n"
        "tuner run task.json --virtual\n"
        "RAY_ADDRESS=auto tuner run task.yaml --results s3://bucket/studies"
    )
)
@_task
@_engine
@_num_gpus
@_results
@click.option("--study", metavar="NAME", help="The new study's name [default: task name and time].")
@_at_once
@click.option("--seed", type=click.IntRange(min=0, max=2**32 - 1), help="In place of the task's seed.")
@click.option("--warm-start", multiple=True, metavar="STUDY", help="Learn from an earlier study; repeatable.")
@click.option("--prior", type=click.Choice(["simulator"]), help="Begin where the simulator would.")
@click.option(
    "--resume", is_flag=True, help="Go on with this task's newest study (or --study), if there is one."
)
@click.option("--adopt", is_flag=True, help="With --resume: although the task has changed since.")
@_virtual
@_calibration
def run(
    task_path: Path,
    engine: str | None,
    num_gpus: int | None,
    results: str | None,
    study: str | None,
    max_concurrent: int | None,
    seed: int | None,
    warm_start: tuple[str, ...],
    prior: Literal["simulator"] | None,
    resume: bool,
    adopt: bool,
    virtual: bool,
    calibration: Path | None,
) -> None:
    """Searches the space of TASK and reports the best configuration.

    Ends with exit code 3 where no configuration met the SLOs, 4 where no trial finished, 130 after
    Ctrl-C (everything that was finished is kept).
    """
    from tuner.task import load_task

    task = load_task(task_path)
    if adopt and not resume:
        raise UsageError("--adopt: only together with --resume")
    _run(
        task,
        engine=engine,
        num_gpus=num_gpus,
        results=results,
        study=study,
        max_concurrent=max_concurrent,
        seed=seed,
        warm_start=warm_start,
        prior=prior,
        resume=resume,
        adopt=adopt,
        virtual=virtual,
        calibration=calibration,
        source=str(task_path),
    )


@cli.command(
    epilog=_examples(
        "tuner resume                            (the newest study)\n"
        "tuner resume my-study\n"
        "tuner resume my-study --task task.json --adopt"
    )
)
@_study
@_results
@_num_gpus
@_at_once
@click.option(
    "--task", "task_path", metavar="TASK", type=click.Path(path_type=Path), help="The task as it is."
)
@click.option("--adopt", is_flag=True, help="Go on with TASK although it has changed.")
def resume(
    study: str | None,
    results: str | None,
    num_gpus: int | None,
    max_concurrent: int | None,
    task_path: Path | None,
    adopt: bool,
) -> None:
    """Goes on with STUDY (default: the newest) where it was left, however that came about.

    What was measured is kept and not measured again. The study goes on with the task that it was begun with,
    or with TASK; a TASK that has changed since is refused, unless --adopt takes it and the trials so far
    compare with further ones.
    """
    from tuner.task import load_task, make_task

    store = _store(study, results)
    if not store.exists():
        raise StudyError(f"no study {store.study!r} in {store.root}")
    about = store.about()
    task = (
        load_task(task_path) if task_path else make_task(about.get("task", {}), f"{store.study}/study.json")
    )
    source = str(task_path or about.get("source", ""))
    _run(
        task,
        engine=about.get("engine"),
        virtual=bool(about.get("virtual")),
        num_gpus=num_gpus,
        results=results,
        study=store.study,
        max_concurrent=max_concurrent,
        resume=True,
        adopt=adopt,
        source=source,
    )


def _run(task: Task, *, results: str | None, **how: Any) -> NoReturn:
    """Runs a study, shows it, and leaves with its exit code."""
    console = _console()
    with _Watching(console, f"Tuning {task.task_name}") as watching:
        from tuner.study import run_study

        outcome = run_study(task, results=results, watch=watching.show, **how)
    kept, name = len(outcome.results.trials), outcome.results.about["study"]
    if outcome.interrupted:
        console.print(f"[bold]Interrupted[/bold]; {kept} trials are kept, `tuner resume {name}` goes on.")
    if kept:
        _show_report(console, outcome.results, ResultStore(results or default_root(), name))
    console.print(
        f"\nResults  {outcome.location}\nLog      {outcome.log_path}", soft_wrap=True, highlight=False
    )
    sys.exit(outcome.exit_code)


@cli.command(epilog=_examples("tuner check configs/quickstart.json\ntuner check task.json --engine sglang"))
@_task
@_engine
def check(task_path: Path, engine: str | None) -> None:
    """Says what TASK would cost, and every problem in it (exit code 2 where there is one)."""
    from tuner.check import check_task

    for line in check_task(task_path, engine):
        click.echo(line)


@cli.command(
    epilog=_examples(
        "tuner trial configs/quickstart.json --set tp-size=2 --set schedule-policy=lpm\n"
        "tuner trial task.json          (the engine's defaults)"
    )
)
@_task
@_engine
@click.option("--set", "flags", multiple=True, metavar="FLAG=VALUE", help="A flag of the engine; repeatable.")
@_virtual
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
    config = dict(_flag_value(flag) for flag in flags)
    seed = task.optimization.seed or 0
    measured_by = rig(task, engine, virtual=virtual, seed=seed)
    adapter = measured_by.engine
    version = adapter.version()
    began, clock = datetime.now(UTC), time.monotonic()
    log_path = data_home() / "logs" / f"trial-{began:%Y%m%d-%H%M%S-%f}.log"
    if not as_json:
        simulated = " (SIMULATED)" if adapter.simulated else ""
        click.echo(f"{engine_text(adapter.name, version)}{simulated}, log: {log_path}")
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
            click.echo(f"highest load within the SLOs: {max_loads_text(report.max_loads)}")
    sys.exit(4 if report.failure else 0)


@cli.command(
    epilog=_examples(
        "tuner bench configs/quickstart.json --base-url http://127.0.0.1:30000\n"
        "tuner bench task.json --base-url http://10.0.0.7:8000 --gpus 4 --json > baseline.json\n"
        "tuner bench task.json --base-url https://llm.example.com --api-key-env OPENAI_API_KEY"
    )
)
@_task
@click.option("--base-url", required=True, metavar="URL", help="The server, which speaks OpenAI's API.")
@click.option(
    "--gpus", type=click.IntRange(min=0), default=0, help="GPUs that it runs on, for the rates per GPU."
)
@_results
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

    Its cache is not flushed. Ends with exit code 2 where no server answers, 3 where it does not keep the
    SLOs, 4 where a load level could not be measured.
    """
    from tuner.bench import bench as measure
    from tuner.engines.attached import Attached
    from tuner.levels import levels_of
    from tuner.live import report_line
    from tuner.report import level_table
    from tuner.report.words import SIMULATED, max_loads_text, promises_text
    from tuner.rows import step_row
    from tuner.task import load_task

    task = load_task(task_path)
    server = Attached(task, base_url, gpus, _api_key(api_key_env))
    seed = (task.optimization.seed or 0) if seed is None else seed
    most = levels_of(task, seed).most
    count = f"up to {most}" if task.benchmark.find else f"{most}"
    console = _console(stderr=as_json)
    if server.simulated:
        console.print(SIMULATED, style="bold yellow")
    console.print(f"{server.model} at {server.base_url}, load levels: {count}\n", highlight=False)

    def show(report: Report) -> None:
        _show(console, report_line(report) if report.step is None else level_table(step_row(report.step)))
        status.update(f"load level {report.finished + 1} of {count}")

    with console.status(f"load level 1 of {count}") as status:
        outcome = measure(task, server, seed=seed, results=results, source=str(task_path), watch=show)
    if as_json:
        click.echo(json.dumps(outcome.document(), indent=2))
    if outcome.max_loads:
        console.print(f"Max load {max_loads_text(outcome.max_loads)} within the SLOs", highlight=False)
    if outcome.trial["slo_met"] is not None and outcome.trial["slo_worst"]:
        console.print(f"SLOs     {promises_text(outcome.trial)}", highlight=False)
    console.print(f"Results  {outcome.location}", soft_wrap=True, highlight=False)
    sys.exit(outcome.exit_code)


@cli.command(
    epilog=_examples(
        "tuner predict configs/quickstart.json\n"
        "tuner predict task.json --gpu h200 --top 10\n"
        "tuner predict task.json --json"
    )
)
@_task
@click.option(
    "--gpu", metavar="NAME", help="The GPU to simulate, such as h200 [default: the task's, or h100]."
)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many to show.")
@click.option("--seed", type=click.IntRange(min=0, max=2**32 - 1), help="In place of the task's seed.")
@_calibration
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def predict(
    task_path: Path, gpu: str | None, top: int, seed: int | None, calibration: Path | None, as_json: bool
) -> None:
    """Predicts the best configurations of TASK in virtual time; nothing is started and nothing measured.

    Takes tasks of the simulator and of SGLang, and up to 300 configurations of a larger space. Ends with exit
    code 4 where no configuration would run.
    """
    from tuner.forecast import forecast
    from tuner.task import load_task

    task = load_task(task_path)
    seed = (task.optimization.seed or 0) if seed is None else seed
    found = forecast(task, gpu=gpu, top=top, seed=seed, calibration=calibration)
    for line in [json.dumps(found.document(), indent=2)] if as_json else found.lines():
        click.echo(line)
    sys.exit(0 if found.best else 4)


@cli.command(
    epilog=_examples(
        "tuner calibrate\n"
        "tuner calibrate my-study --gpu h100 --output h100.json\n"
        "tuner predict task.json --calibration h100.json"
    )
)
@_study
@_results
@click.option("--gpu", metavar="NAME", help="What it ran on [default: what the results say].")
@click.option("--output", type=click.Path(path_type=Path), help="The file [default: in the study's folder].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def calibrate(
    study: str | None, results: str | None, gpu: str | None, output: Path | None, as_json: bool
) -> None:
    """Fits the simulator's constants to the trials of STUDY (default: the newest).

    It is to be one of SGLang, or of the simulator. Says how far off it is before, after, and on
    configurations that were held out. Ends with exit code 3, and writes nothing, where that is no nearer.
    """
    from tuner.calibrate import calibrate as fitted

    store = _store(study, results)
    found = fitted(store.read(), gpu=gpu)
    text = json.dumps(found.document(), indent=2)
    for line in [text] if as_json else found.lines():
        click.echo(line)
    if not found.helps:
        click.echo("No nearer on what was held out: nothing is written.", err=True)
        sys.exit(3)
    if output is None:
        place = store.write_file("calibration.json", text.encode())
    else:
        place = str(output)
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--output: {output} cannot be written: {error.strerror}") from error
    if not as_json:
        click.echo(f"\nFile     {place}")


@cli.command(epilog=_examples("tuner report\ntuner report quickstart-20260101-120000 --html report.html"))
@_study
@_results
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write the page here as well.")
def report(study: str | None, results: str | None, html_path: Path | None) -> None:
    """Reports on STUDY (default: the newest), here and as one self-contained HTML file."""
    store = _store(study, results)
    found = store.read()
    if found.about.get("kind") == "bench":
        _show_bench(_console(), found)
    else:
        _show_report(_console(), found, store)
    if html_path:
        from tuner.report import html

        try:
            html_path.write_text(html(found, _launch_text(found)), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--html: {html_path} cannot be written: {error.strerror}") from error
    for skipped in found.skipped:
        click.echo(f"skipped: {skipped}", err=True)


@cli.command(epilog=_examples("tuner export\ntuner export my-study --format kubernetes > engine.yaml"))
@_study
@_results
@click.option(
    "--format", "form", type=click.Choice(["shell", "docker", "kubernetes", "json"]), default="shell"
)
def export(study: str | None, results: str | None, form: str) -> None:
    """Prints how to launch the best configuration of STUDY (default: the newest)."""
    from tuner.export import FORMATS, best_deployment

    click.echo(FORMATS[form](best_deployment(_store(study, results).read())), nl=False)


@cli.command("studies", epilog=_examples("tuner studies\ntuner studies --results s3://bucket/studies"))
@_results
def list_studies(results: str | None) -> None:
    """Lists the studies that are kept, the newest first."""
    for name in studies(results or default_root()):
        click.echo(name)


@cli.command("engines", epilog=_examples("tuner engines\ntuner engines --python /opt/sglang/bin/python"))
@click.option("--python", metavar="PATH", help="Look for engines in this interpreter's environment.")
def list_engines(python: str | None) -> None:
    """Lists the engines, what each found on this machine, and what is missing."""
    from tuner.engines import survey
    from tuner.engines.gpus import all_gpus

    for name, version, missing in survey(python):
        click.echo(f"{name:<12}{version}" if version else f"{name:<12}not here: {missing}")
    found = all_gpus()
    click.echo("\nGPUs" if found else "\nGPUs        none (no NVIDIA driver answers)")
    for use in found:
        memory = f"{use.used_bytes / 2**30:.1f} of {use.total_bytes / 2**30:.1f} GiB in use"
        click.echo(f"{use.gpu:<12}{use.model}, {memory}")


@cli.command()
def schema() -> None:
    """Prints the JSON schema of task files."""
    from tuner.task import task_schema

    click.echo(task_schema(), nl=False)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; errors that this package knows become one message and their exit code."""
    try:
        sys.exit(cli.main(arguments, prog_name="tuner", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except TunerError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


class _Watching:
    """Shows a study's progress: a live display on a terminal, a line for each trial elsewhere."""

    def __init__(self, console: Console, title: str) -> None:
        from rich.live import Live

        from tuner.live import LiveStudy

        self._console = console
        self._study = LiveStudy(title)
        self._live = Live(self._study, console=console, refresh_per_second=4, transient=True)
        self._lines = not console.is_terminal

    def __enter__(self) -> _Watching:
        if self._lines:
            self._console.print(self._study.title)
        else:
            self._live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if not self._lines:
            self._live.stop()

    def show(self, progress: StudyProgress) -> None:
        """Takes the newest progress."""
        from tuner.live import progress_line

        before, self._study.progress = self._study.progress, progress
        if not self._lines:
            return
        lines = []
        if progress.last is not None and progress.last != getattr(before, "last", None):
            lines.append(progress_line(progress))
        if progress.trouble and progress.trouble != getattr(before, "trouble", ""):
            lines.append(progress.trouble)
        for line in lines:
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _show(console: Console, content: RenderableType) -> None:
    """Prints `content`; into a file or another program without the blanks that fill a terminal's lines."""
    if console.is_terminal:
        console.print(content)
        return
    with console.capture() as shown:
        console.print(content)
    click.echo("\n".join(line.rstrip() for line in shown.get().splitlines()), file=console.file)


def _show_report(console: Console, found: StudyResults, store: ResultStore) -> None:
    from tuner.report import html, terminal

    launch = _launch_text(found)
    _show(console, terminal(found, launch))
    page = store.write_file("report.html", html(found, launch).encode())
    console.print(f"\nReport   {page}", soft_wrap=True, highlight=False)


def _show_bench(console: Console, found: StudyResults) -> None:
    from tuner.analysis.trials import rows
    from tuner.report import level_table

    console.print(f"{found.about['study']}: {found.about['base_url']}\n", highlight=False)
    for row in rows(found.steps):
        _show(console, level_table(row))


def _store(study: str | None, results: str | None) -> ResultStore:
    root = results or default_root()
    if study is None:
        kept = studies(root)
        if not kept:
            raise StudyError(f"no study is kept in {root}; `tuner run TASK` makes one")
        study = kept[0]
    return ResultStore(root, study)


def _launch_text(found: StudyResults) -> str | None:
    from tuner.analysis import summary
    from tuner.export import best_deployment, shell

    if found.about.get("kind") == "bench" or summary(found).best is None:
        return None
    return shell(best_deployment(found)).strip()


def _api_key(variable: str | None) -> str:
    """The key in an environment variable; empty where none is named. Its text is in no message."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable() and key):
        raise UsageError(f"--api-key-env: the environment variable {variable} holds no key")
    return key


def _flag_value(text: str) -> tuple[str, Value]:
    """`tp-size=2` as a flag and its value: JSON where it is JSON, else the text itself."""
    from tuner.task.fields import value_problem
    from tuner.task.model import reserved

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


if __name__ == "__main__":
    main()
