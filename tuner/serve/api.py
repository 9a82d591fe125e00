"""The HTTP API, version 1: its routes and what they say of themselves. No tuning logic.

`create_app` builds it around anything that runs jobs, so that it can be looked at without Ray.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Security
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool

from tuner import __version__
from tuner.errors import Problem, StudyError, UsageError
from tuner.export import FORMATS, best_deployment, launch_text
from tuner.registry import engines
from tuner.report import html
from tuner.results import TABLES
from tuner.serve.errors import RequestError, add_errors
from tuner.serve.events import events
from tuner.serve.guard import Guard
from tuner.serve.jobs import Jobs
from tuner.serve.models import (
    AboutBody,
    BestBody,
    CheckBody,
    ErrorBody,
    StudiesBody,
    StudyBody,
)
from tuner.serve.pages import add_pages
from tuner.serve.requests import (
    EVENT,
    TASK_BODY,
    AtOnce,
    NewName,
    Seed,
    SimulatedPrior,
    StudyName,
    TaskOptions,
    TaskUpload,
    WarmStart,
    known_query,
    may,
)
from tuner.serve.studies import Studies
from tuner.serve.tables import Form, written
from tuner.task.file import MAX_BYTES

_DESCRIPTION = """
Starts studies, follows them, and reads what they found: the command `tuner` from afar.

Every request below `/api/v1` needs the token that `tuner serve` printed, as `Authorization: Bearer TOKEN`.
A task file names programs that are run on the server: whoever has the token may do there what its user may.
"""


def create_app(root: str, jobs: Jobs, token_digest: str | None) -> FastAPI:
    """The application over the studies in `root`, a folder or a URI, which `jobs` runs.

    `token_digest` is of the token that is asked for (`tokens.digest`); None asks for none.
    """
    app = FastAPI(
        title="inference-autotuner",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    app.add_middleware(Guard, token_digest=token_digest, max_bytes=MAX_BYTES)
    kept = Studies(root, jobs)
    token = Security(HTTPBearer(auto_error=False, description="What `tuner serve` printed."))
    router = APIRouter(
        prefix="/api/v1", dependencies=[token, Depends(known_query)], responses=may(401, 403, 422, 500)
    )
    _add_tasks(router, kept)
    _add_studies(router, kept)
    _add_results(router, kept)
    app.include_router(router)
    add_pages(app)
    add_errors(app)
    return app


def _add_tasks(router: APIRouter, kept: Studies) -> None:
    task_body = {"requestBody": TASK_BODY}

    @router.get(
        "/about",
        tags=["server"],
        summary="What this server has to offer",
        responses={401: {"model": ErrorBody}},  # named once, and so in the document
    )
    def about() -> AboutBody:
        return AboutBody(
            name="inference-autotuner",
            version=__version__,
            engines=list(engines()),
            export_formats=list(FORMATS),
            tables={name: list(schema.names) for name, schema in TABLES.items()},
        )

    @router.post(
        "/check",
        tags=["tasks"],
        summary="Check a task: every problem in it, or what it would cost",
        responses=may(413),
        openapi_extra=task_body,
    )
    def check(upload: TaskUpload, options: TaskOptions) -> CheckBody:
        task, lines = kept.check(upload, options)
        return CheckBody(task_name=task.task_name, lines=lines)

    @router.post(
        "/studies",
        tags=["tasks"],
        summary="Start a study of a task",
        status_code=201,
        responses=may(404, 409, 413),
        openapi_extra=task_body,
    )
    def submit(
        request: Request,
        response: Response,
        upload: TaskUpload,
        options: TaskOptions,
        study: NewName = None,
        seed: Seed = None,
        max_concurrent: AtOnce = None,
        warm_start: WarmStart = [],  # noqa: B006  FastAPI copies it
        prior: SimulatedPrior = None,
    ) -> StudyBody:
        """The task is checked first, as by `check`. The answer's `Location` is the study's own address."""
        chosen = replace(
            options,
            study=study,
            seed=seed,
            max_concurrent=max_concurrent,
            warm_start=tuple(warm_start),
            prior=prior,
        )
        started = kept.submit(upload, chosen)
        response.headers["location"] = request.url_for("one_study", study=started.study).path
        return started


def _add_studies(router: APIRouter, kept: Studies) -> None:
    @router.get("/studies", tags=["studies"], summary="List the studies, the newest first")
    def all_studies(
        limit: Annotated[int, Query(ge=1, le=200, description="How many at most.")] = 20,
        offset: Annotated[int, Query(ge=0, le=1_000_000, description="How many to leave out first.")] = 0,
    ) -> StudiesBody:
        return kept.list(limit, offset)

    @router.get("/studies/{study}", tags=["studies"], summary="How a study stands", responses=may(404))
    def one_study(study: StudyName) -> StudyBody:
        return kept.study(study)

    @router.get(
        "/studies/{study}/events",
        tags=["studies"],
        summary="Follow a study (server-sent events)",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "An event `study` whenever something has changed, its data the same object as "
                "of `GET /studies/{study}`; `end` when nothing more comes of it.",
                "content": {"text/event-stream": {"schema": EVENT}},
            },
            **may(404),
        },
    )
    async def follow(study: StudyName) -> StreamingResponse:
        await run_in_threadpool(kept.study, study)  # 404 where there is none, before a stream begins
        stream = events(lambda: kept.study(study))
        return StreamingResponse(stream, media_type="text/event-stream")

    @router.post(
        "/studies/{study}/cancel",
        tags=["studies"],
        summary="End a study that runs",
        status_code=202,
        responses=may(404, 409),
    )
    def cancel(study: StudyName) -> StudyBody:
        """Finished trials are kept, engines leave their GPUs; `resume` goes on with it."""
        return kept.cancel(study)

    @router.post(
        "/studies/{study}/resume",
        tags=["studies"],
        summary="Go on with a study where it was left",
        status_code=202,
        responses=may(404, 409),
    )
    def resume(study: StudyName, max_concurrent: AtOnce = None) -> StudyBody:
        """What was measured is kept and not measured again."""
        return kept.resume(study, max_concurrent)

    @router.get(
        "/studies/{study}/log",
        tags=["studies"],
        summary="The end of a study's log",
        response_class=PlainTextResponse,
        responses=may(404),
    )
    def log(
        study: StudyName,
        lines: Annotated[int, Query(ge=1, le=10_000, description="How many at most.")] = 200,
        job: Annotated[bool, Query(description="What its Ray job printed, in place of its log.")] = False,
    ) -> PlainTextResponse:
        return PlainTextResponse(kept.log(study, job_output=job, lines=lines))


def _add_results(router: APIRouter, kept: Studies) -> None:
    for name in TABLES:
        _add_table(router, kept, name)

    @router.get(
        "/studies/{study}/best",
        tags=["results"],
        summary="The best configuration, and what it is worth",
        responses=may(404, 409),
    )
    def best(study: StudyName) -> BestBody:
        return kept.best(study)

    @router.get(
        "/studies/{study}/export",
        tags=["results"],
        summary="How to launch the best configuration",
        response_class=PlainTextResponse,
        responses=may(404, 409),
    )
    def export(
        study: StudyName,
        form: Annotated[str, Query(alias="format", json_schema_extra={"enum": list(FORMATS)})] = "shell",
    ) -> PlainTextResponse:
        if form not in FORMATS:
            message = f"must be one of {', '.join(FORMATS)}, got {form!r}"
            raise RequestError([Problem("query.format", message)])
        return PlainTextResponse(FORMATS[form](best_deployment(kept.results(study))))

    @router.get(
        "/studies/{study}/report",
        tags=["results"],
        summary="The report, one HTML page that needs no network",
        response_class=Response,
        responses={
            200: {"content": {"text/html": {"schema": {"type": "string"}}}},
            **may(404, 409),
        },
    )
    def report(study: StudyName) -> Response:
        found = kept.results(study)
        if found.about.get("kind") == "bench":
            raise StudyError(
                f"study {study!r} measured a server that ran already: its steps are all there is"
            )
        return Response(
            html(found, launch_text(found)),
            media_type="text/html",
            headers={"content-security-policy": "sandbox allow-scripts; frame-ancestors 'none'"},
        )


def _add_table(router: APIRouter, kept: Studies, name: str) -> None:
    forms: dict[str, Any] = {form.media_type.partition(";")[0]: {"schema": {}} for form in Form}

    @router.get(
        f"/studies/{{study}}/{name}",
        tags=["results"],
        summary=f"The table `{name}`, as JSON, CSV or Parquet",
        name=name,
        response_class=Response,
        responses={200: {"content": forms}, **may(404)},
    )
    def table(
        study: StudyName,
        form: Annotated[Form, Query(alias="format")] = Form.JSON,
        columns: Annotated[
            str,
            Query(description="Some, with commas between [default: all].", examples=["trial,score"]),
        ] = "",
    ) -> Response:
        """docs/results.md explains every column."""
        frame = getattr(kept.results(study), name)
        chosen = [each for each in columns.split(",") if each]
        try:
            content = written(frame, name, form, chosen)
        except UsageError as error:
            raise RequestError([Problem("query.columns", str(error))]) from error
        place = {"content-disposition": f'attachment; filename="{study}-{name}.{form}"'}
        return Response(content, media_type=form.media_type, headers=place)
