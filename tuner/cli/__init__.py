"""The command `tuner`: reads the command line, calls the library, prints. The only package that prints.

Exit codes: 0 done; 1 something broke; 2 what was asked for cannot be done (nothing was started);
3 the study ended and no configuration met its SLOs; 4 it ended and no trial finished; 130 interrupted.
"""

from __future__ import annotations

import sys

import click

from tuner.cli import (
    comparing,
    foreseeing,
    listing,
    machine,
    measuring,
    publishing,
    reading,
    serving,
    tuning,
    verifying,
    watching,
)
from tuner.cli.options import examples
from tuner.errors import TunerError

__all__ = ["cli", "main"]


@click.group(
    epilog=examples("tuner check configs/quickstart.json\ntuner run configs/quickstart.json\ntuner report")
)
@click.version_option(package_name="inference-autotuner", prog_name="tuner")
def cli() -> None:
    """Finds the best flags of an LLM inference engine for a model, its GPUs and a latency promise."""


for _command in (
    tuning.run,
    tuning.resume,
    watching.watch,
    foreseeing.check,
    foreseeing.predict,
    foreseeing.calibrate,
    measuring.trial,
    measuring.bench,
    reading.report,
    comparing.compare,
    reading.export,
    verifying.verify,
    publishing.publish,
    listing.list_studies,
    serving.serve,
    machine.list_engines,
    machine.schema,
):
    cli.add_command(_command)


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
