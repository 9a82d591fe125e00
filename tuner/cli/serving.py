"""`tuner serve`: studies over HTTP, and a web page on them."""

from __future__ import annotations

import os

import click

from tuner.cli.options import examples, num_gpus_option, results_option
from tuner.errors import UsageError


@click.command(
    epilog=examples(
        "tuner serve\n"
        "tuner serve --port 9000 --num-gpus 8\n"
        "RAY_ADDRESS=auto tuner serve --results s3://bucket/studies\n"
        "TUNER_TOKEN=... tuner serve --host 0.0.0.0 --token-env TUNER_TOKEN\n"
        "serve run tuner.serve:app                       (on a Ray cluster, as any application)"
    )
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@results_option
@num_gpus_option
@click.option("--token-env", metavar="NAME", help="The environment variable with the token to ask for.")
@click.option("--no-token", is_flag=True, help="Ask for no token: whoever reaches loopback may do all.")
def serve(
    host: str, port: int, results: str | None, num_gpus: int | None, token_env: str | None, no_token: bool
) -> None:
    """Serves studies over HTTP: an API, documented at /docs, and a web page on it.

    Asks for a token, which is made once and kept in $XDG_DATA_HOME/autotuner/serve/token. Starts a local Ray
    with its dashboard unless RAY_ADDRESS names one, and ends it at Ctrl-C; studies that run are interrupted
    then, and can be resumed.
    """
    if no_token and token_env:
        raise UsageError("--no-token and --token-env: one of them")
    from tuner.serve.tokens import kept_token, token_file, token_in

    token = None if no_token else token_in(token_env) if token_env else kept_token()
    click.echo("Starting Ray and the server ...", err=True)
    if not os.environ.get("RAY_ADDRESS"):  # then one is started, which reads this when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from tuner.serve.session import Place, serving, wait_for_the_end

    place = Place(host, port, results, num_gpus)
    with serving(place, token) as dashboard:
        if token_env:
            click.echo(f"Open     {place.url}\nToken    that of {token_env}")
        elif token is None:
            click.echo(f"Open     {place.url}\nToken    none is asked for")
        else:
            click.echo(f"Open     {place.url}#token={token}\nToken    {token_file()}")
        click.echo(f"API      {place.url}docs")
        if dashboard:
            click.echo(f"Ray      {dashboard} (its token: ~/.ray/auth_token)")
        click.echo("\nCtrl-C ends it.")
        wait_for_the_end()
        click.echo("Ending the studies that run, the server and its Ray ...", err=True)
