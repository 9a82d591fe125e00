"""`tuner verify`: the exported command of a study is started and measured."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from tuner.cli.options import examples, results_option, store_of, study_argument
from tuner.cli.screen import console_for, show

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.evaluate import Report
    from tuner.verify import Verification


@click.command(
    epilog=examples("tuner verify\ntuner verify my-study --trial 7\ntuner verify my-study --json > v.json")
)
@study_argument
@results_option
@click.option("--trial", "number", type=click.IntRange(min=0), help="This trial's [default: the best's].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
def verify(study: str | None, results: str | None, number: int | None, as_json: bool) -> None:
    """Starts what `tuner export` prints for STUDY (default: the newest), and measures whether it delivers.

    It is started here, on loopback, under the study's load; its objective and SLOs are to be what they were,
    within what one run differs from the next. Ends with exit code 0 where they are, 3 where they are not, 4
    where it does not start or cannot be measured.
    """
    from tuner.levels import levels_of
    from tuner.live import report_line
    from tuner.report import level_table
    from tuner.report.words import SIMULATED
    from tuner.rows import step_row
    from tuner.verify import candidate
    from tuner.verify import verify as measure

    store = store_of(study, results)
    what = candidate(store.read(), number)
    console = console_for(stderr=as_json)
    if what.exported.simulated:
        console.print(SIMULATED, style="bold yellow")
    heading = f"Verifying {what.title}, log: {what.log_path}\n{what.command}\n"
    console.print(heading, highlight=False, soft_wrap=True, markup=False)
    most = levels_of(what.task, what.seed).most

    def each(report: Report) -> None:
        show(console, report_line(report) if report.step is None else level_table(step_row(report.step)))
        status.update(f"load level {report.finished + 1} of {most}")

    with console.status("starting") as status:
        found = measure(what, root=store.root, watch=each)
    if as_json:
        click.echo(json.dumps(found.document(), indent=2))
    _show(console, found)
    sys.exit(found.exit_code)


def _show(console: Console, found: Verification) -> None:
    from tuner.report.words import Unit, limit_text, percent, promises_text, seconds

    lines = []
    for each in found.compared:
        unit = each.objective.unit_on(found.deployment.gpus)
        shown = seconds(each.promised) if unit == "s" else Unit(unit, 1.0)
        change = f"{percent(abs(each.worse_by))} {'worse' if each.worse_by > 0 else 'better'}"
        lines.append(
            f"{each.objective.meaning}: {shown.amount(each.promised)} promised, "
            f"{shown.amount(each.measured)} measured: {change}, {percent(each.allowed)} may be chance"
        )
    if found.promises is not None:
        chance = (
            "" if found.promises.measured <= 0 or not found.promises.delivered else ", which may be chance"
        )
        lines.append(f"SLOs: {promises_text(found.kept.trial)}{chance}")
    verdict = (
        "It delivers what was promised." if found.delivered else "It does NOT deliver what was promised."
    )
    if found.failed:
        verdict = f"It failed: {found.kept.trial['failure_cause']}: {found.kept.trial['failure_detail']}"
    marks = [step.client_limit for step in found.kept.steps if step.client_limit]
    if marks:
        which = f"{len(marks)} of {len(found.kept.steps)} load levels are not to be trusted"
        lines.append(f"But {which}: {limit_text(marks[0])}")
    lines += [verdict, f"Results  {found.kept.location}"]
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
