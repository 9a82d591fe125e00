"""Secrets: which names hold one, how a task refers to one, and how text is freed of them.

A task file holds none: `"HF_TOKEN": "${HF_TOKEN}"` in `engine.env` names the variable, of the environment
that the study is started in, whose value it is. So what is kept and shown of a task has none either. What
engines, hubs and Ray write about themselves may have one all the same, and is shown and kept `redacted`.
Knows nothing of tasks or engines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from tuner.errors import EngineUnavailable

HIDDEN = "[secret]"
_NAME = re.compile(
    r"((?<!FIRST_)(?<!PER_)TOKEN|KEY|KEY_ID|SECRETS?|PASSWORD|PASSWD|(?<![A-Z])PASS|PASSPHRASE|CREDENTIALS?"
    r"|CONNECTION_STRING)\Z"
)
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]{0,199})\}")
_SWITCHES = {"", "0", "1", "true", "false", "yes", "no", "on", "off"}
_LEAST = 8  # characters: a shorter value would tear holes into any text
# Tokens that say what they are: Hugging Face's, OpenAI's, GitHub's, GitLab's, Slack's, AWS's.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|glpat-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}|AKIA[0-9A-Z]{16})"
)
_USER_INFO = re.compile(r"(?<=://)[^/\s:@]{0,100}:[^/\s@]{1,300}(?=@)")  # user:password@ in a URL
_CONTROL = re.compile(  # ECMA-48's sequences, and what else is no tab or newline
    r"\x1b\[[0-?]{0,99}[ -/]{0,9}[@-~]|\x1b\][^\x07\x1b]{0,999}(?:\x07|\x1b\\)|[\0-\x08\x0b-\x1f\x7f-\x9f]"
)


def is_secret(name: str) -> bool:
    """Whether a variable, a flag or a field of this name holds a secret: it ends in TOKEN, KEY ..."""
    return _NAME.search(name.replace("-", "_").upper()) is not None


def looks_secret(text: str) -> bool:
    """Whether `text` has an access token in it that its shape gives away, or a password in a URL."""
    return bool(_TOKEN.search(text) or _USER_INFO.search(text))


def reference(value: str) -> str | None:
    """`NAME` of a value that is `${NAME}` and nothing else; None of any other."""
    match = _REFERENCE.fullmatch(value)
    return match[1] if match else None


def is_switch(value: str) -> bool:
    """Whether a value is too plain to be secret: empty, a digit, yes or no."""
    return value.lower() in _SWITCHES


def referenced(variables: Mapping[str, str], surroundings: Mapping[str, str]) -> dict[str, str]:
    """What `variables` refer to, by the name that they refer to.

    EngineUnavailable where the surroundings lack one: an engine without its token fails an hour later.
    """
    names = {name: other for name, value in variables.items() if (other := reference(value))}
    for name, other in names.items():
        if other not in surroundings:
            raise EngineUnavailable(f"engine.env.{name}: the environment has no variable {other}")
    return {other: surroundings[other] for other in names.values()}


def resolved(variables: Mapping[str, str], surroundings: Mapping[str, str]) -> dict[str, str]:
    """`variables` with what they refer to in place of each reference; see `referenced`."""
    found = referenced(variables, surroundings)
    return {name: found.get(reference(value) or "", value) for name, value in variables.items()}


def known(variables: Mapping[str, str], surroundings: Mapping[str, str]) -> dict[str, str]:
    """The surroundings, and under their own names what `variables` refer to there."""
    referred = {name: surroundings.get(reference(value) or "", "") for name, value in variables.items()}
    return {**surroundings, **referred}


def secret_names(environment: Mapping[str, str]) -> list[str]:
    """The variables whose values are secrets, and long enough to be told from other text."""
    return [name for name, value in environment.items() if len(value) >= _LEAST and is_secret(name)]


def plain(text: str, environment: Mapping[str, str]) -> str:
    """`text` of others as it can be kept and shown: `redacted`, and nothing that drives a terminal."""
    written = _CONTROL.sub("", text).encode(errors="replace").decode()
    return redacted(written, environment)


def redacted(text: str, environment: Mapping[str, str]) -> str:
    """`text` without the values of the environment's secrets, and without what looks like one."""
    values = {environment[name] for name in secret_names(environment)}
    for value in sorted(values | {json.dumps(value)[1:-1] for value in values}, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return _USER_INFO.sub(HIDDEN, _TOKEN.sub(HIDDEN, text))
