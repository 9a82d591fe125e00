"""What requests to the API hold: a task file as their body, names, options; and which errors they may get."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, HTTPException, Path, Query, Request
from pydantic import StringConstraints

from tuner.results import STUDY_NAME
from tuner.serve.errors import RequestError
from tuner.serve.studies import Options, Upload
from tuner.task.file import MAX_BYTES
from tuner.task.problems import unknown_key

_NAME = rf"^{STUDY_NAME.pattern}$"
TASK_BODY = {
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

EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": ["study", "end"]},
        "data": {"type": "string", "description": "JSON, or for `end` the state."},
    },
}


def may(*statuses: int) -> dict[int | str, dict[str, Any]]:
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
WarmStart = Annotated[
    list[Annotated[str, StringConstraints(pattern=_NAME)]],
    Query(max_length=20, description="Earlier studies to learn from.", examples=[["quickstart-1"]]),
]
SimulatedPrior = Annotated[Literal["simulator"] | None, Query(description="Begin where the simulator would.")]
AtOnce = Annotated[int | None, Query(ge=1, le=10_000, description="Trials at once [default: all that fit].")]


def known_query(request: Request) -> None:
    """RequestError where the query has a key that its route does not take."""
    route, method = request.scope["route"], request.method.lower()
    document = request.app.openapi()["paths"][route.path][method]
    known = [each["name"] for each in document.get("parameters", []) if each["in"] == "query"]
    problems = [
        unknown_key(f"query.{key}", key, value, known)
        for key, value in request.query_params.items()
        if key not in known
    ]
    if problems:
        raise RequestError(problems)


def options_of(
    engine: Annotated[
        str | None,
        Query(pattern=r"^[A-Za-z0-9_-]{1,60}$", description="In place of the task's base_runtime."),
    ] = None,
    virtual: Annotated[
        bool, Query(description="On the simulator in virtual time: seconds in place of minutes.")
    ] = False,
) -> Options:
    return Options(engine=engine, virtual=virtual)


async def upload_of(request: Request) -> Upload:
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


TaskOptions = Annotated[Options, Depends(options_of)]
TaskUpload = Annotated[Upload, Depends(upload_of)]
