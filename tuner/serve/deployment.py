"""The API as a Ray Serve application: one replica beside the jobs' drivers, on the head node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from tuner.errors import UsageError
from tuner.results import fixed_root
from tuner.serve.api import create_app
from tuner.serve.ray_jobs import RayJobs
from tuner.serve.tokens import digest, kept_token, token_in

NAME = "tuner"
_HEAD = {"node:__internal_head__": 0.001}  # where jobs' drivers run, and write results and logs
_MOST_REQUESTS = 1000  # at once: whoever follows a study holds one for as long


@serve.deployment(
    name="api",
    max_ongoing_requests=_MOST_REQUESTS,
    ray_actor_options={"num_cpus": 0, "resources": _HEAD},  # trials need the CPUs
)
@serve.ingress()
class _Server:
    """Holds the application, which is built where it runs."""

    def __init__(self, root: str, token_digest: str | None) -> None:
        self._app = create_app(root, RayJobs(), token_digest)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app


def application(root: str | None, token_digest: str | None) -> Application:
    """The application over the studies in `root`; `token_digest` None asks for no token."""
    bound: Application = _Server.bind(fixed_root(root), token_digest)  # type: ignore[attr-defined]
    return bound


def application_of(arguments: Mapping[str, Any]) -> Application:
    """As `serve run` gives them: `results` and `token_env`; UsageError for any other."""
    if unknown := set(arguments) - {"results", "token_env"}:
        raise UsageError(f"tuner.serve:app takes results=… and token_env=…, not {', '.join(sorted(unknown))}")
    variable = arguments.get("token_env")
    token = kept_token() if variable is None else token_in(str(variable))
    results = arguments.get("results")
    return application(None if results is None else str(results), digest(token))
