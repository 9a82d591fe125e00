"""The server: studies over HTTP, as a Ray Serve application and a small web page. No tuning logic in it.

`tuner serve` starts it; `serve run tuner.serve:app` runs it on a Ray cluster that is there already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["app"]


def app(arguments: dict[str, Any]) -> Application:
    """The application for `serve run tuner.serve:app`, with `results=DIR-or-URI` and `token_env=NAME`.

    Without `token_env`, the token is the one in the file that `tuner serve` keeps, which is made where there
    is none. There is no application without a token.
    """
    from tuner.serve.deployment import application_of

    return application_of(arguments)
