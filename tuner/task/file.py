"""How a file says a task: JSON with comments and trailing commas, or YAML. The only reader of task files.

Every problem in a file is reported at once, with its path, the value that is there, and a hint.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import json5
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tuner.errors import Problem, TaskError
from tuner.task.fields import shown
from tuner.task.model import Task
from tuner.task.problems import problems_of

MAX_BYTES = 256 * 1024  # json5 reads about 100 KB a second
_MAX_DEPTH = 32
_MAX_NODES = 50_000  # YAML aliases can make a small file huge


def load_task(path: str | Path) -> Task:
    """The task that the file at `path` describes; TaskError with every problem in it otherwise."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TaskError(str(path), [Problem("", f"cannot be read: {error.strerror or error}")]) from error
    data = _parse(content, str(path), yaml=path.suffix.lower() in {".yaml", ".yml"})
    if isinstance(data, dict):
        data.setdefault("task_name", path.stem)
    return make_task(data, str(path))


def make_task(data: Any, source: str = "task") -> Task:
    """A task from plain data (dictionaries and lists); TaskError, which names `source`, otherwise."""
    _refuse(source, _shape_problems(data))
    try:
        task = Task.model_validate(data)
    except ValidationError as error:
        _refuse(source, problems_of(error))
        raise
    _refuse(source, [Problem(path, message) for path, message in task.cross_problems()])
    return task


def task_schema() -> str:
    """The JSON schema of task files, as it is checked in beside this module."""
    schema = Task.model_json_schema(mode="validation")
    schema["required"] = []  # `model` is needed by every engine but the simulator
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def _refuse(source: str, problems: list[Problem]) -> None:
    if problems:
        raise TaskError(source, problems)


def _parse(content: bytes, source: str, *, yaml: bool) -> Any:
    if len(content) > MAX_BYTES:
        _refuse(source, [Problem("", f"is {len(content):,} bytes long", f"at most {MAX_BYTES:,} are read")])
    try:
        text = content.decode("utf-8-sig")
        return _read_yaml(text) if yaml else _read_json(text, source)
    except UnicodeDecodeError as error:
        place = f"byte {error.start} is {content[error.start : error.start + 1]!r}"
        problem = Problem("", f"is not UTF-8 text: {place}", "save it as UTF-8")
    except RecursionError:
        problem = Problem("", f"is nested more than {_MAX_DEPTH} levels deep")
    except (ValueError, YAMLError) as error:
        reason = " ".join(
            str(error).replace("<string>:", "line ").replace("<unicode string>", "file").split()
        )
        problem = Problem("", f"is not {'YAML' if yaml else 'JSON'}: {reason}")
    raise TaskError(source, [problem])


def _read_yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def _read_json(text: str, source: str) -> Any:
    duplicates: list[Problem] = []

    def unique(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        pairs = list(items)
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                values = ", ".join(shown(value) for name, value in pairs if name == key)
                duplicates.append(Problem(key, f"stands {count} times in the same object, with {values}"))
        return dict(pairs)

    data = json5.loads(text, object_pairs_hook=unique)
    _refuse(source, duplicates)
    return data


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
                else:
                    stack.append((f"{path}.{key}".lstrip("."), value, depth + 1))
        elif isinstance(node, list):
            stack.extend((f"{path}[{i}]", value, depth + 1) for i, value in enumerate(node))
        elif isinstance(node, str):
            if any(0xD800 <= ord(character) <= 0xDFFF for character in node):
                problems.append(Problem(path, f"holds half a surrogate pair, got {shown(node)}"))
        elif not isinstance(node, bool | int | float | None):
            problems.append(Problem(path, f"must be plain JSON data, got {shown(node)}", "quote it"))
    return problems
