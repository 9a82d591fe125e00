"""The pages for people: plain files without a build step, and what their browser may load.

The look is the report's own (`report.style`); the report opens in a frame without rights, whose one script
the policy names by its hash.
"""

from __future__ import annotations

import base64
from hashlib import sha256
from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from tuner.report.style import CSS, SCRIPT

_HERE = Path(__file__).parent / "static"
_SWAGGER = Path(fastapi_offline.__file__).parent / "static"  # Swagger UI: the page must not need a network
_BASE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}'"


# The frame inherits this policy: its plots carry style attributes, its tables sort by `SCRIPT`.
PAGE_POLICY = (
    f"default-src 'none'; script-src 'self' {_hash(SCRIPT)}; style-src 'self' 'unsafe-inline'; "
    f"connect-src 'self'; img-src 'self' data:; frame-src 'self'; {_BASE}"
)
DOCS_POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    f"img-src 'self' data:; {_BASE}"
)
_CACHED = {"cache-control": "max-age=300"}


def add_pages(app: FastAPI) -> None:
    """Adds the page at `/`, the API's at `/docs`, and what they load below `/static/`."""

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        return FileResponse(_HERE / "index.html", headers={"content-security-policy": PAGE_POLICY})

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        return FileResponse(_HERE / "docs.html", headers={"content-security-policy": DOCS_POLICY})

    @app.get("/static/house.css", include_in_schema=False)
    def house() -> Response:
        return Response(CSS, media_type="text/css", headers=_CACHED)

    app.mount("/static/swagger", StaticFiles(directory=_SWAGGER))
    app.mount("/static", StaticFiles(directory=_HERE))
