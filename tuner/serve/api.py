"""The HTTP API, version 1: routes, their documentation, and errors as answers. No tuning logic.

`create_app` builds it around anything that runs jobs, so that it can be looked at without Ray.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as AnyHTTPException

from tuner import __version__
from tuner.errors import Problem, StudyError, TaskError, TunerError, UsageError
from tuner.export import FORMATS, best_deployment, launch_text
from tuner.registry import engines
from tuner.report import html
from tuner.results import STUDY_NAME, TABLES
from tuner.serve.events import events
from tuner.serve.guard import Guard
from tuner.serve.jobs import Jobs
from tuner.serve.models import (
    AboutBody,
    BestBody,
    CheckBody,
    ErrorBody,
    ProblemBody,
    StudiesBody,
    StudyBody,
)
from tuner.serve.pages import add_pages
from tuner.serve.studies import Options, Studies, Upload
from tuner.serve.tables import Form, written
from tuner.task.file import MAX_BYTES

_DESCRIPTION = """
Starts studies, follows them, and reads what they found: the command `tuner` from afar.

Every request below `/api/v1` needs the token that `tuner serve` printed, as `Authorization: Bearer TOKEN`.
A task file names programs that are run on the server: whoever has the token may do there what its user may.
"""
_NAME = rf"^{STUDY_NAME.pattern}$"
_TASK = {
    "description": "A task file as `tuner run` takes it: JSON with comments, or YAML. At most 256 KiB.",
    "required": True,
    "content": {
        kind: {
            "schema": {"type": "object" if kind.endswith("json") else "string"},
            "example": example,
        }
        for kind, example in {
            "application/json": {
                "model": {"id_or_path": "meta-llama/Llama-3.1-8B-Instruct"},
                "parameters": {"tp-size": [1, 2, 4], "mem-fraction-static": [0.8, 0.85, 0.9]},
                "optimization": {"objective": "minimize_latency", "max_iterations": 20},
                "slo": {"ttft": {"p95": {"threshold": 0.5}}},
                "benchmark": {"traffic_scenarios": ["D(100,100)"], "num_concurrency": [8, 32]},
            },
            "application/yaml": "parameters:\n  tp-size: [1, 2]\noptimization:\n  max_iterations: 10\n",
        }.items()
    },
}

_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": ["study", "end"]},
        "data": {"type": "string", "description": "JSON, or for `end` the state."},
    },
}


def _may(*statuses: int) -> dict[int | str, dict[str, Any]]:
    reasons = {
        401: "The token is missing or wrong.",
        403: "Another site's page asks, or there is no token and this is not loopback.",
        404: "There is no such study, or nothing of it to show.",
        409: "The study is in no state for this; the error says why.",
        413: "The task is too long.",
        422: "The task or the request is wrong; `problems` has every reason.",
        500: "Results cannot be read, or Ray does not answer; the error says which.",
    }
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    return {status: {"description": reasons[status], "content": body} for status in statuses}


StudyName = Annotated[str, Path(pattern=_NAME, description="A study's name.", examples=["quickstart-1"])]
NewName = Annotated[
    str | None, Query(pattern=_NAME, description="The new study's name [default: of the task and the time].")
]
Seed = Annotated[int | None, Query(ge=0, le=2**32 - 1, description="In place of the task's seed.")]
AtOnce = Annotated[int | None, Query(ge=1, le=10_000, description="Trials at once [default: all that fit].")]


def _options(
    engine: Annotated[
        str | None,
        Query(pattern=r"^[A-Za-z0-9_-]{1,60}$", description="In place of the task's base_runtime."),
    ] = None,
    virtual: Annotated[
        bool, Query(description="On the simulator in virtual time: seconds in place of minutes.")
    ] = False,
) -> Options:
    return Options(engine=engine, virtual=virtual)


async def _upload(request: Request) -> Upload:
    """The body as a task file. What is neither called JSON nor YAML is what it looks like."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BYTES:
            raise HTTPException(413, f"the task is too long: more than {MAX_BYTES:,} bytes")
    kind = request.headers.get("content-type", "").partition(";")[0].lower()
    if kind.endswith("json"):
        return Upload(bytes(content), yaml=False)
    looks_json = bytes(content).lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"/"))
    return Upload(bytes(content), yaml="yaml" in kind or not looks_json)


TaskOptions = Annotated[Options, Depends(_options)]
TaskUpload = Annotated[Upload, Depends(_upload)]


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
    router = APIRouter(prefix="/api/v1", dependencies=[token], responses=_may(401, 403, 422, 500))
    _add_tasks(router, kept)
    _add_studies(router, kept)
    _add_results(router, kept)
    app.include_router(router)
    add_pages(app)
    _add_errors(app)
    return app


def _add_tasks(router: APIRouter, kept: Studies) -> None:
    task_body = {"requestBody": _TASK}

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
        responses=_may(413),
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
        responses=_may(409, 413),
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
    ) -> StudyBody:
        """The task is checked first, as by `check`. The answer's `Location` is the study's own address."""
        chosen = Options(study, options.engine, options.virtual, seed, max_concurrent)
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

    @router.get("/studies/{study}", tags=["studies"], summary="How a study stands", responses=_may(404))
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
                "content": {"text/event-stream": {"schema": _EVENT}},
            },
            **_may(404),
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
        responses=_may(404, 409),
    )
    def cancel(study: StudyName) -> StudyBody:
        """Finished trials are kept, engines leave their GPUs; `resume` goes on with it."""
        return kept.cancel(study)

    @router.post(
        "/studies/{study}/resume",
        tags=["studies"],
        summary="Go on with a study where it was left",
        status_code=202,
        responses=_may(404, 409),
    )
    def resume(study: StudyName, max_concurrent: AtOnce = None) -> StudyBody:
        """What was measured is kept and not measured again."""
        return kept.resume(study, max_concurrent)

    @router.get(
        "/studies/{study}/log",
        tags=["studies"],
        summary="The end of a study's log",
        response_class=PlainTextResponse,
        responses=_may(404),
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
        responses=_may(404, 409),
    )
    def best(study: StudyName) -> BestBody:
        return kept.best(study)

    @router.get(
        "/studies/{study}/export",
        tags=["results"],
        summary="How to launch the best configuration",
        response_class=PlainTextResponse,
        responses=_may(404, 409),
    )
    def export(
        study: StudyName,
        form: Annotated[str, Query(alias="format", json_schema_extra={"enum": list(FORMATS)})] = "shell",
    ) -> PlainTextResponse:
        if form not in FORMATS:
            raise UsageError(f"format: must be one of {', '.join(FORMATS)}")
        return PlainTextResponse(FORMATS[form](best_deployment(kept.results(study))))

    @router.get(
        "/studies/{study}/report",
        tags=["results"],
        summary="The report, one HTML page that needs no network",
        response_class=Response,
        responses={
            200: {"content": {"text/html": {"schema": {"type": "string"}}}},
            **_may(404, 409),
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
        responses={200: {"content": forms}, **_may(404)},
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
        content = written(frame, name, form, chosen)
        place = {"content-disposition": f'attachment; filename="{study}-{name}.{form}"'}
        return Response(content, media_type=form.media_type, headers=place)


def _add_errors(app: FastAPI) -> None:
    """Errors of this package, of a request's form and of HTTP, all in one shape."""

    @app.exception_handler(TunerError)
    def known(_: Request, error: TunerError) -> JSONResponse:
        if isinstance(error, TaskError):
            count = len(error.problems)
            return _answer(422, f"the task has {count} problem{'s' * (count != 1)}", error.problems)
        status = 409 if isinstance(error, StudyError) else 422 if isinstance(error, UsageError) else 500
        return _answer(status, str(error))

    @app.exception_handler(LookupError)
    def missing(_: Request, error: LookupError) -> JSONResponse:
        if type(error) is not LookupError:  # a KeyError is a fault of ours
            raise error
        return _answer(404, str(error))

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        problems = [Problem(".".join(map(str, each["loc"])), str(each["msg"])) for each in error.errors()]
        return _answer(422, "the request is not as it has to be", problems)

    @app.exception_handler(AnyHTTPException)
    def http(request: Request, error: AnyHTTPException) -> JSONResponse:
        if error.status_code == 405:  # a route knows of its own method only
            return _answer(405, "this can not be done here", headers={"allow": _allowed(app, request)})
        return _answer(error.status_code, str(error.detail).lower(), headers=error.headers)


def _allowed(app: FastAPI, request: Request) -> str:
    """The methods of every route at the request's path."""
    methods: set[str] = set()
    for path, routes in app.openapi()["paths"].items():
        pattern = re.sub(r"\{\w+\}", "[^/]+", path)
        if re.fullmatch(pattern, request.url.path.removeprefix(str(request.scope.get("root_path", "")))):
            methods |= {method.upper() for method in routes}
    return ", ".join(sorted(methods))


def _answer(status: int, error: str, problems: Any = (), headers: Any = None) -> JSONResponse:
    body = ErrorBody(
        error=error,
        problems=[ProblemBody(path=each.path, message=each.message, hint=each.hint) for each in problems],
    )
    return JSONResponse(body.model_dump(), status, headers=headers)
