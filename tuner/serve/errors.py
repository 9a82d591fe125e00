"""Errors as answers: this package's, those of a request's form and those of HTTP, all in one shape."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from tuner.errors import Problem, StudyError, TaskError, TunerError, UsageError
from tuner.serve.models import ErrorBody, ProblemBody
from tuner.task.problems import in_our_words


class RequestError(UsageError):
    """A request with what its route does not take; `problems` has every reason."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, problems)))


def add_errors(app: FastAPI) -> None:
    """Errors of this package, of a request's form and of HTTP, all in one shape."""

    @app.exception_handler(TunerError)
    def known(_: Request, error: TunerError) -> JSONResponse:
        if isinstance(error, TaskError):
            count = len(error.problems)
            return _answer(422, f"the task has {count} problem{'s' * (count != 1)}", error.problems)
        if isinstance(error, RequestError):
            return _answer(422, str(error), error.problems)
        status = 409 if isinstance(error, StudyError) else 422 if isinstance(error, UsageError) else 500
        return _answer(status, str(error))

    @app.exception_handler(LookupError)
    def missing(_: Request, error: LookupError) -> JSONResponse:
        if type(error) is not LookupError:  # a KeyError is a fault of ours
            raise error
        return _answer(404, str(error))

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        problems = [_problem(each) for each in error.errors()]
        return _answer(422, "the request is not as it has to be", problems)

    @app.exception_handler(AnyHTTPException)
    def http(request: Request, error: AnyHTTPException) -> JSONResponse:
        if error.status_code == 405:  # a route knows of its own method only
            return _answer(405, "this can not be done here", headers={"allow": _allowed(app, request)})
        return _answer(error.status_code, str(error.detail).lower(), headers=error.headers)


def _problem(details: Mapping[str, Any]) -> Problem:
    path = ".".join(map(str, details["loc"]))
    if details["type"] == "missing":
        return Problem(path, "is missing")
    return Problem(path, in_our_words(str(details["msg"]), details["input"]))


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
