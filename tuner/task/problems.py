"""Pydantic's validation errors as `Problem`s: path, value and hint in the task file's own words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

from tuner.errors import Problem
from tuner.task.fields import key_path, shown
from tuner.task.model import Task


def problems_of(error: ValidationError) -> list[Problem]:
    """Every problem of a validation error, in the order of the file's keys."""
    return [_problem(dict(details)) for details in error.errors(include_url=False)]


def _problem(details: dict[str, Any]) -> Problem:
    value, kind = details["input"], details["type"]
    *above, last = details["loc"] or ("",)
    location = tuple(part for part in above if not _is_tag(part))
    if kind == "extra_forbidden" or not (_is_tag(last) or last == "[key]"):
        location = (*location, last)  # an unknown key may look like a tag
    path = _path(location)
    if kind == "extra_forbidden":
        return unknown_key(path, str(last), value, _known_keys(details["loc"][:-1]))
    if kind == "missing":
        return Problem(path, "is missing", _described(details["loc"]))
    message = str(details["msg"])
    return Problem(path, message if kind == "task" else in_our_words(message, value))


def unknown_key(path: str, key: str, value: Any, known: Sequence[str]) -> Problem:
    """A key at `path` that is not one of the `known`, with the nearest of them."""
    near = get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}" if known else ""
    return Problem(path, f"is not a known key, got {shown(value)}", hint)


def in_our_words(message: str, value: Any) -> str:
    """A message of pydantic's on `value`, shorter and with the value."""
    for long, short in _SHORTER:
        message = re.sub(long, short, message)
    return f"{message}, got {shown(value)}"


_SHORTER = (
    (r" after validation, not \d+", ""),
    (", unable to (parse|interpret) .*", ""),
    ("Input should be", "must be"),
    (r"a valid dictionary( or instance of \w+)?", "an object"),
    ("greater than or equal to", ">="),
    ("less than or equal to", "<="),
    ("greater than", ">"),
    ("less than", "<"),
    ("a valid ", "a "),
    ("a integer", "an integer"),
    ("(List|Dictionary) should have at least 1 item", "must not be empty"),
    ("(List|Dictionary|String) should", "must"),
)


def _path(location: tuple[Any, ...]) -> str:
    text = ""
    for part in location:
        text = key_path(text, part)
    return text


def _section(location: tuple[Any, ...]) -> type[BaseModel] | None:
    """The model class at a place in the task, followed through lists, dictionaries and unions."""
    annotation: Any = Task
    for part in location:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(str(part))
            annotation = field.annotation if field else None
        elif _is_tag(part):
            annotation = next((option for tag, option in _options(annotation) if tag == part), None)
        else:  # an item of a list or dictionary: what it holds comes last
            held = get_args(annotation)
            annotation = held[-1] if held else None
        models = [option for _, option in _options(annotation) if isinstance(option, type)]
        if (
            get_origin(annotation) not in (list, dict)
            and len(models) == 1
            and issubclass(models[0], BaseModel)
        ):
            annotation = models[0]
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


def _options(annotation: Any, tag: str = "") -> list[tuple[str, Any]]:
    """The members of (nested) unions and Annotated with their tags, without None."""
    if hasattr(annotation, "__metadata__"):
        tags = [extra.tag for extra in annotation.__metadata__ if isinstance(extra, Tag)]
        return _options(get_args(annotation)[0], *tags)
    if get_origin(annotation) in (list, dict) or not get_args(annotation):
        return [] if annotation is type(None) else [(tag, annotation)]
    return [found for option in get_args(annotation) for found in _options(option)]


def _is_tag(part: str | int) -> bool:
    """Whether a place is no key but the name of a union's member (`<list>`), as `model` gives them."""
    return isinstance(part, str) and part.startswith("<") and part.endswith(">")


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    section = _section(location)
    return list(section.model_fields) if section else []


def _described(location: tuple[Any, ...]) -> str:
    """The first sentence of what the key at a place means."""
    section = _section(location[:-1])
    field = section.model_fields.get(str(location[-1])) if section else None
    first, more, _ = (field.description or "").partition(". ") if field else ("", "", "")
    return f"{first}." if more else first
