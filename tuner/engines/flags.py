"""Which flags an installed Python engine accepts: asked of its own parser, kept on disk by version.

The text of `--help` names no types: `MODULE --help` is run, and its parser gives its options as JSON in
place of printing that text. Knows nothing of any engine but that it uses argparse.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tuner.engines.base import Config, Value
from tuner.failures import Cause, Failure, Stage, TrialFailed

_FORMAT = 1  # of the cache's files
_ASK_LIMIT_S = 300.0  # SGLang's imports take 4 s on a quiet machine and 30 s on a busy one
_KINDS: dict[str, type] = {"int": int, "float": float}  # what else a parser makes of a text, it alone knows
_SHOWN_CHOICES = 12
# Run by the engine's interpreter as `python -c ASK MODULE --help`.
ASK = """
import argparse, json, runpy, sys

def tell(parser, file=None):
    print()
    print(json.dumps([{
        "names": [name for name in action.option_strings if name.startswith("--")],
        "takes_value": action.nargs != 0,
        "needs_value": action.nargs not in (0, "?", "*"),
        "kind": getattr(action.type, "__name__", None),
        "choices": None if action.choices is None else [str(choice) for choice in action.choices],
        "default_on": action.nargs == 0 and action.default is True,
    } for action in parser._actions]))

argparse.ArgumentParser.print_help = tell
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Flag:
    """One option of the parser: its spellings (`--tp-size`, `--tp`) and what it takes.

    `kind` is the name of the function that reads the value ("int"; None: text), `default_on` says that
    leaving the flag out switches it on.
    """

    names: tuple[str, ...]
    takes_value: bool
    needs_value: bool
    kind: str | None
    choices: tuple[str, ...] | None
    default_on: bool


class Flags:
    """Every option of an engine's command line."""

    def __init__(self, flags: Sequence[Flag]) -> None:
        self.all = tuple(flags)
        self._by_name = {name: flag for flag in flags for name in flag.names}

    def check(self, config: Config) -> None:
        """Raises TrialFailed (CHECK, invalid flags) for the first flag that the parser would refuse."""
        for name, value in config.items():
            if problem := self._problem(f"--{name}", value):
                raise TrialFailed(Failure(Stage.CHECK, Cause.INVALID_FLAGS, problem))

    def _problem(self, name: str, value: Value) -> str:
        if (flag := self._by_name.get(name)) is None:
            return unrecognized(name, self._by_name)
        problem = _value_problem(flag, value)
        return f"argument {name}: {problem}" if problem else ""


def unrecognized(name: str, names: Collection[str]) -> str:
    """Why `--tp` is refused where there is `--tp-size`: argparse's abbreviations hide what is counted."""
    longer = sorted((other for other in names if other.startswith(f"{name}-")), key=len)
    near = longer or get_close_matches(name, names, n=1, cutoff=0.5)
    return f"unrecognized argument {name}" + (f" (did you mean {near[0]}?)" if near else "")


def _value_problem(flag: Flag, value: Value) -> str:
    if value is None:
        return ""
    if value is False:
        off = [name for name in flag.names if name.startswith("--no-")]
        hint = f"; {off[0][2:]}: true switches it off" if off else ""
        return f"is on by default, and false only leaves it out{hint}" if flag.default_on else ""
    if value is True:
        return "expected a value, got true" if flag.needs_value else ""
    if not flag.takes_value:
        return f"takes no value, got {value!r} (true or false)"
    return _text_problem(flag, str(value))


def _text_problem(flag: Flag, text: str) -> str:
    given: Any = text
    if kind := _KINDS.get(flag.kind or ""):
        try:
            given = kind(text)
        except ValueError:
            return f"invalid {flag.kind} value: {text!r}"
    elif text.startswith("-") and " " not in text and not text[1:].replace(".", "", 1).isdigit():
        return f"expected a value, got {text!r}, which reads as a flag"
    known_kind = flag.kind in (None, "str", *_KINDS)
    if flag.choices is not None and known_kind and str(given) not in flag.choices:
        near = get_close_matches(text, flag.choices, n=1)
        shown = ", ".join(flag.choices[:_SHOWN_CHOICES])
        more = ", ..." if len(flag.choices) > _SHOWN_CHOICES else ""
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"invalid choice: {text!r} (choose from {shown}{more}{hint})"
    return ""


def installed_flags(
    command: Sequence[str], *, env: Mapping[str, str], key: Sequence[str], folder: Path
) -> Flags | None:
    """The flags that `command` (an interpreter's `-c ASK MODULE --help`) tells; None where it does not.

    They are kept in `folder` under `key`, which names all that they depend on (interpreter, version).
    A file there that cannot be read, or is of another key, counts as none and is written anew.
    """
    name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:20]
    path = folder / f"flags-{name}.json"
    if (kept := _read(path, key)) is not None:
        return kept
    found = _ask(command, env)
    if found is not None:
        with suppress(OSError):  # a full or read-only disk costs the next study some seconds
            _write(path, key, found)
    return found


def _ask(command: Sequence[str], env: Mapping[str, str]) -> Flags | None:
    try:
        asked = subprocess.run(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    for line in reversed(asked.stdout.splitlines()):  # imports may have printed before, or at exit
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            return _flags(json.loads(line))
    return None


def _flags(rows: Any) -> Flags:
    """Flags of JSON rows; ValueError, TypeError or KeyError where they are none."""
    if not isinstance(rows, list) or not rows:
        raise ValueError("no flags")
    flags = [
        Flag(
            names=tuple(str(name) for name in row["names"]),
            takes_value=bool(row["takes_value"]),
            needs_value=bool(row["needs_value"]),
            kind=None if row["kind"] is None else str(row["kind"]),
            choices=None if row["choices"] is None else tuple(str(choice) for choice in row["choices"]),
            default_on=bool(row["default_on"]),
        )
        for row in rows
    ]
    return Flags([flag for flag in flags if flag.names])


def _read(path: Path, key: Sequence[str]) -> Flags | None:
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["format"] == _FORMAT and kept["key"] == list(key):
            return _flags(kept["flags"])
    return None


def _write(path: Path, key: Sequence[str], flags: Flags) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": _FORMAT, "key": list(key), "flags": [asdict(flag) for flag in flags.all]}
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
