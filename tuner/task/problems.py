"""Pydantic's validation errors as `Problem`s: path, value and hint in the task file's own words."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from tuner.errors import Problem
from tuner.task.fields import shown
from tuner.task.model import Task
from tuner.task.parameters import UNION_TAGS


def problems_of(error: ValidationError) -> list[Problem]:
    """Every problem of a validation error, in the order of the file's keys."""
    return [_problem(dict(details)) for details in error.errors(include_url=False)]


def _problem(details: dict[str, Any]) -> Problem:
    location = tuple(part for part in details["loc"] if part not in UNION_TAGS and part != "[key]")
    path, value, kind = _path(location), details["input"], details["type"]
    if kind == "extra_forbidden":
        known = _known_keys(details["loc"][:-1])
        near = get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}" if known else ""
        return Problem(path, f"is not a known key, got {shown(value)}", hint)
    if kind == "missing":
        return Problem(path, "is missing", _described(details["loc"]))
    message = str(details["msg"])
    if kind != "task":
        for long, short in _SHORTER:
            message = re.sub(long, short, message)
        message = f"{message}, got {shown(value)}"
    return Problem(path, message)


_SHORTER = (
    ("Input should be", "must be"),
    (r"a valid dictionary( or instance of \w+)?", "an object"),
    ("greater than or equal to", ">="),
    ("less than or equal to", "<="),
    ("greater than", ">"),
    ("less than", "<"),
    ("a valid ", "a "),
    ("a integer", "an integer"),
    ("List should have at least 1 item after validation, not 0", "must not be empty"),
    ("Dictionary should have at least 1 item after validation, not 0", "must not be empty"),
    ("String should", "must"),
)


def _path(location: tuple[Any, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def _section(location: tuple[Any, ...]) -> type[BaseModel] | None:
    """The model class at a place in the task, followed through lists, dictionaries and unions."""
    annotation: Any = Task
    for part in location:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(str(part))
            annotation = field.annotation if field else None
        elif part in UNION_TAGS:
            tagged = [option for option in _leaves(annotation) if f"<{_tag(option)}>" == part]
            annotation = tagged[0] if tagged else None
        else:  # an item of a list or dictionary: what it holds comes last
            held = get_args(annotation)
            annotation = held[-1] if held else None
        models = [option for option in _leaves(annotation) if isinstance(option, type)]
        if (
            get_origin(annotation) not in (list, dict)
            and len(models) == 1
            and issubclass(models[0], BaseModel)
        ):
            annotation = models[0]
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


def _leaves(annotation: Any) -> list[Any]:
    """The members of (nested) unions and Annotated, without None."""
    if hasattr(annotation, "__metadata__"):
        return _leaves(get_args(annotation)[0])
    if get_origin(annotation) in (list, dict) or not get_args(annotation):
        return [] if annotation is type(None) else [annotation]
    return [leaf for option in get_args(annotation) for leaf in _leaves(option)]


def _tag(model: Any) -> str:
    kinds = get_args(model.model_fields["type"].annotation) if hasattr(model, "model_fields") else ("",)
    return str(kinds[0])


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    section = _section(location)
    return list(section.model_fields) if section else []


def _described(location: tuple[Any, ...]) -> str:
    section = _section(location[:-1])
    field = section.model_fields.get(str(location[-1])) if section else None
    return (field.description or "") if field else ""
