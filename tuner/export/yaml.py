"""YAML that every reader takes for the same: what comes from a study is quoted, whatever it looks like.

kubectl, docker and Ray read YAML 1.1, where `on` is true, `012` is ten and `1e3` is a text; others read 1.2.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString as Quoted

__all__ = ["Quoted", "documents", "quoted"]

_PLAIN_KEY = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_WORDS = {"on", "off", "yes", "no", "y", "n", "true", "false", "null"}


def quoted(value: Any) -> Any:
    """`value` with each text in it in quotes; keys too, unless they cannot be taken for anything else."""
    if isinstance(value, str):
        return Quoted(value)
    if isinstance(value, Mapping):
        return {_key(str(key)): quoted(each) for key, each in value.items()}
    return [quoted(each) for each in value] if isinstance(value, list | tuple) else value


def _key(text: str) -> str:
    plain = _PLAIN_KEY.fullmatch(text) and text not in _WORDS
    return text if plain else Quoted(text)


def _float(representer: Any, value: float) -> Any:
    """YAML 1.1 wants a point: `1e-05` is a text to it."""
    text = {math.inf: ".inf", -math.inf: "-.inf"}.get(value, repr(value))
    text = text.replace("e", ".0e") if "e" in text and "." not in text else text
    return representer.represent_scalar("tag:yaml.org,2002:float", text)


def documents(*each: Mapping[str, Any], comments: str = "") -> str:
    """The documents of a YAML file, below its comments."""
    yaml = YAML()
    yaml.representer.add_representer(float, _float)
    yaml.representer.ignore_aliases = lambda data: True  # written out: people read and edit it
    yaml.allow_unicode, yaml.width = False, 2**20  # odd characters and folded lines would not come back whole
    yaml.indent(mapping=2, sequence=4, offset=2)
    texts = []
    for document in each:
        text = io.StringIO()
        yaml.dump(document, text)
        texts.append(text.getvalue())
    return comments + "---\n".join(texts)
