"""How a file says a task: JSON with comments and trailing commas, or YAML. The only reader of task files.

Every problem in a file is reported at once, with its path, the value that is there, and a hint.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import json5
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import ReusedAnchorWarning, YAMLError

from tuner.errors import Problem, TaskError
from tuner.secrets import is_secret, looks_secret
from tuner.task.checks import cross_problems
from tuner.task.fields import key_path, shown
from tuner.task.model import Task
from tuner.task.problems import problems_of

MAX_BYTES = 256 * 1024  # json5 reads about 100 KB a second
_MAX_DEPTH = 32
_IN_THE_ENVIRONMENT = "no file should hold one: leave it to the environment, and see engine.env"
_MAX_NODES = 50_000  # YAML aliases can make a small file huge


def load_task(path: str | Path) -> Task:
    """The task that the file at `path` describes; TaskError with every problem in it otherwise."""
    path = Path(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise TaskError(str(path), [Problem("", f"cannot be read: {reason}")]) from error
    data = _parse(content, str(path), yaml=path.suffix.lower() in {".yaml", ".yml"})
    if isinstance(data, dict):
        data.setdefault("task_name", path.stem)
        _place_dataset(data.get("benchmark"), path.parent)
    return make_task(data, str(path))


def _place_dataset(benchmark: Any, folder: Path) -> None:
    """Makes a relative path of a data set one that holds from anywhere: it counts from the task file."""
    if isinstance(benchmark, dict) and isinstance(dataset := benchmark.get("dataset"), str) and dataset:
        benchmark["dataset"] = str((folder / dataset).absolute())


def make_task(data: Any, source: str = "task") -> Task:
    """A task from plain data (dictionaries and lists); TaskError, which names `source`, otherwise."""
    _refuse(source, _shape_problems(data))
    try:
        task = Task.model_validate(data)
    except ValidationError as error:
        _refuse(source, [*problems_of(error), *_problems_of_the_rest(data, error)])
        raise
    _refuse(source, cross_problems(task))
    return task


def _problems_of_the_rest(data: dict[str, Any], error: ValidationError) -> list[Problem]:
    """What only the whole shows to be wrong, in what is left of `data` without the keys at fault."""
    rest = {**data, "model": {"id_or_path": "any"}}
    for details in error.errors(include_url=False, include_context=False, include_input=False):
        section, *below = details["loc"] or ("",)
        held = rest.get(str(section))
        if section == "parameters" and below and isinstance(held, dict):
            rest[section] = {name: spec for name, spec in held.items() if name != below[0]}
        else:
            rest.pop(str(section), None)
    if not rest.get("parameters", True):
        del rest["parameters"]
    try:
        return cross_problems(Task.model_validate(rest))
    except ValidationError:
        return []


def task_schema() -> str:
    """The JSON schema of task files, as it is checked in beside this module."""
    schema = Task.model_json_schema(mode="validation")
    schema["required"] = []  # `model` is needed by every engine but the simulator
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def _refuse(source: str, problems: list[Problem]) -> None:
    if problems:
        raise TaskError(source, [_without_secrets(problem) for problem in problems])


def _without_secrets(problem: Problem) -> Problem:
    """Without the value that is there, where its key is a secret's."""
    if not any(map(is_secret, re.split(r"[.\[]", problem.path))):
        return problem
    message = re.sub(r"\b(got|with|holds(?! what)) .*", r"\1 a value that is not shown", problem.message)
    return replace(problem, message=message)


def _parse(content: bytes, source: str, *, yaml: bool) -> Any:
    if len(content) > MAX_BYTES:
        _refuse(source, [Problem("", f"is too long: more than {MAX_BYTES:,} bytes")])
    try:
        text = content.decode("utf-8-sig")
        if not text.strip():
            _refuse(source, [Problem("", "is empty", "{} is a task with nothing but defaults")])
        return _read_yaml(text) if yaml else _read_json(text)
    except UnicodeDecodeError as error:
        place = f"byte {error.start} is {content[error.start : error.start + 1]!r}"
        problem = Problem("", f"is not UTF-8 text: {place}", "save it as UTF-8")
    except RecursionError:
        problem = Problem("", f"is nested more than {_MAX_DEPTH} levels deep")
    except (ValueError, YAMLError) as error:
        problem = Problem("", f"is not {'YAML' if yaml else 'JSON'}: {_reason(error)}")
    raise TaskError(source, [problem])


class _Constructor(SafeConstructor):
    """Plain data only, without YAML 1.1's merge keys: a few nested ones make millions of pairs."""

    def flatten_mapping(self, node: Any) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, "merge keys (<<) are not read", key.start_mark)


def _read_yaml(text: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReusedAnchorWarning)
        try:
            return yaml.load(text)
        except (YAMLError, ValueError, RecursionError):
            raise
        except Exception as error:  # ruamel lets TypeError, KeyError, AttributeError ... of odd tags through
            raise ValueError(str(error)) from error


@dataclass(frozen=True)
class _Repeated:
    """Stands for the value of a key that an object has more than once."""

    values: list[Any]


def _read_json(text: str) -> Any:
    def collected(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, list[Any]] = {}
        for key, value in items:
            found.setdefault(key, []).append(value)
        return {key: values[0] if len(values) == 1 else _Repeated(values) for key, values in found.items()}

    try:
        return json.loads(text, object_pairs_hook=collected)  # far faster, where no comment is in its way
    except ValueError:
        return json5.loads(text, object_pairs_hook=collected)


def _reason(error: Exception) -> str:
    """Why a parser gave up, in one line with the place."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        problem, context = (str(getattr(error, name, None) or "") for name in ("problem", "context"))
        said = f"{context}, {problem}" if problem.startswith("but ") else problem or context
        return f"line {mark.line + 1}, column {mark.column + 1}: {said.partition(' with value')[0]}"
    text = str(error).replace("<string>:", "line ").partition("; use sys.")[0]
    return " ".join(text.partition(' in "<unicode string>"')[0].split())


def _shape_problems(data: Any) -> list[Problem]:
    """What makes plain data no JSON document: depth, size, keys that are not text, foreign types."""
    if not isinstance(data, dict):
        return [Problem("", f"must hold an object with the task's keys, got {shown(data)}")]
    problems: list[Problem] = []
    stack: list[tuple[str, Any, int]] = [("", data, 0)]
    nodes = 0
    while stack:
        path, node, depth = stack.pop()
        nodes += 1
        if nodes > _MAX_NODES:
            return [Problem("", f"holds more than {_MAX_NODES:,} values")]
        if depth > _MAX_DEPTH:
            return [Problem("", f"is nested more than {_MAX_DEPTH} levels deep")]
        if isinstance(node, dict):
            for key, value in node.items():
                if not isinstance(key, str):
                    problems.append(Problem(path, f"has the key {shown(key)}", "keys must be text; quote it"))
                elif _half_pair(key):
                    problems.append(Problem(path, f"has the key {shown(key)}, half a surrogate pair"))
                else:
                    stack.append((key_path(path, key), value, depth + 1))
        elif isinstance(node, list):
            stack.extend((key_path(path, i), value, depth + 1) for i, value in enumerate(node))
        else:
            problems += _scalar_problems(path, node)
    return problems[::-1]  # the stack went through the file backwards


def _scalar_problems(path: str, node: Any) -> list[Problem]:
    if isinstance(node, _Repeated):
        values = ", ".join(map(shown, node.values))
        return [Problem(path, f"stands {len(node.values)} times in the same object, with {values}")]
    if isinstance(node, str):
        if looks_secret(node):
            return [Problem(path, "holds what looks like an access token or a password", _IN_THE_ENVIRONMENT)]
        return [Problem(path, f"holds half a surrogate pair, got {shown(node)}")] if _half_pair(node) else []
    if isinstance(node, bool | int | float | None):
        return []
    return [Problem(path, f"must be plain JSON data, got {shown(node)}", "quote it")]


def _half_pair(text: str) -> bool:
    return any(0xD800 <= ord(character) <= 0xDFFF for character in text)
