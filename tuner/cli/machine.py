"""`tuner engines` and `schema`: what this machine and this version have to offer."""

from __future__ import annotations

import click

from tuner.cli.options import examples


@click.command("engines", epilog=examples("tuner engines\ntuner engines --python /opt/sglang/bin/python"))
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


@click.command(epilog=examples("tuner schema > task.schema.json\ntuner schema --table"))
@click.option("--table", is_flag=True, help="Print every key as Markdown tables instead.")
def schema(table: bool) -> None:
    """Prints the JSON schema of task files, for editors."""
    from tuner.task import task_schema, task_tables

    click.echo(task_tables() if table else task_schema(), nl=False)
