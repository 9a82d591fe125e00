"""The keys of a task file as Markdown tables: key, type in words, default, meaning.

Made of the JSON schema, as editors see it, so that the models stay the one source. `*` in a key stands for
any name, or for any place in a list. Knows nothing of what the keys mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuner.task.fields import LIMIT
from tuner.task.model import Task

Schema = Mapping[str, Any]

_HEAD = "| key | type | default | meaning |\n| --- | --- | --- | --- |"
_DEFAULT = re.compile(r"\s*Default: (.+)\.$")  # at a description's end, where the value would not tell
_PAGE = re.compile(r"\bdocs/([\w-]+\.md)(#[\w-]+)?")


def task_tables() -> str:
    """A table of the keys that hold no others, then one for each section, with a heading."""
    schema = Task.model_json_schema()
    keys = _Keys(schema["$defs"])
    plain, sections = [_HEAD], []
    for name, field in schema["properties"].items():
        if inner := keys.sections(field):
            rows = keys.rows("", {"required": [], "properties": {name: field}})
            about = _linked(str(inner[0][1]["description"])) + "\n\n" if len(inner) == 1 else ""
            sections.append("\n".join([f"### `{name}`\n\n{about}{_HEAD}", *rows]))
        else:
            plain += keys.rows("", {"required": [], "properties": {name: field}})
    return "\n\n".join(["\n".join(plain), *sections]) + "\n"


class _Keys:
    """Walks a schema's keys; `definitions` are its sections by name."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions
        self._seen: set[str] = set()

    def options(self, field: Schema) -> list[Schema]:
        """What a value may be, references followed, null left out."""
        if "$ref" in field:
            return [self._definitions[field["$ref"].rpartition("/")[2]]]
        several = field.get("anyOf") or field.get("oneOf")
        if several:
            return [option for each in several for option in self.options(each)]
        return [] if field.get("type") == "null" else [field]

    def sections(self, field: Schema) -> list[tuple[str, Schema]]:
        """(way to it, section) of the objects with known keys that a value is, or holds."""
        found: list[tuple[str, Schema]] = []
        for option in self.options(field):
            if "properties" in option:
                found.append(("", option))
            for key, way in (("additionalProperties", ".*"), ("items", "[*]")):
                held = option.get(key)
                if isinstance(held, dict):
                    found += [(f"{way}{further}", section) for further, section in self.sections(held)]
        return found

    def rows(self, prefix: str, *sections: Schema) -> Iterator[str]:
        """A row for each key of `sections`, which stand for each other, and for those below it.

        Keys that several sections share have one row; a section that was shown is not shown again, and what
        neighbours hold alike is shown once.
        """
        for section in sections:
            if section.get("title") in self._seen:
                continue
            self._seen.add(str(section.get("title")))
            inner = {name: self.sections(field) for name, field in section["properties"].items()}
            for name, below in inner.items():
                path = f"{prefix}{name}"
                if path in self._seen:
                    continue
                self._seen.add(path)
                if not (below and "$ref" in section["properties"][name]):
                    yield self._row(path, [each for each in sections if name in each["properties"]], name)
                alike = [other for other, held in inner.items() if held == below]
                if below and name == alike[-1]:
                    way = path if len(alike) == 1 else f"{prefix}*"
                    yield from self.rows(f"{way}{below[0][0]}.", *(each for _, each in below))

    def _row(self, path: str, sections: Sequence[Schema], name: str) -> str:
        fields = [section["properties"][name] for section in sections]
        meaning = str(fields[0].get("description", ""))
        options = [option for field in fields for option in self.options(field)]
        kinds = _unique([*_choices(options), *filter(None, map(self._kind, options))])
        defaults = _unique([self._default(section, name) for section in sections])
        told = _DEFAULT.search(meaning)
        cells = (
            f"`{path}`",
            _either(kinds),
            told[1] if told else _either(defaults),
            _linked(_DEFAULT.sub("", meaning)),
        )
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    def _default(self, section: Schema, name: str) -> str:
        field = section["properties"][name]
        if "default" not in field:
            return "–"
        value = field["default"]
        if value is None or (isinstance(value, dict) and self.sections(field)):
            return "none"
        return f"`{json.dumps(value)}`"

    def _kind(self, option: Schema, *, plural: bool = False) -> str:
        """What a value is, in words: `integer, 1 to 4,096`; empty where it is one of some choices."""
        if _choices([option]):
            return "them" if plural else ""
        kind, ending = option.get("type"), "s" * plural
        if kind == "array":
            held = " or ".join(self._kind(each, plural=True) for each in self.options(option["items"]))
            return f"list{ending} of {held}"
        if kind == "boolean":
            return "true or false"
        if kind in ("integer", "number"):
            unit = option.get("unit", f"{kind}{ending}")
            return ", ".join(filter(None, (unit, _limits(option))))
        return {"string": f"text{ending}", "object": f"object{ending}"}.get(str(kind), f"value{ending}")


def _limits(option: Schema) -> str:
    """`1 to 4,096` or `above 0`; empty where there are none that matter."""
    low, high = option.get("minimum"), option.get("maximum")
    above, below = option.get("exclusiveMinimum"), option.get("exclusiveMaximum")
    start = f"above {above:,g}" if above is not None else ""
    high = None if high is not None and high >= LIMIT else high
    if low is not None and low > -LIMIT:
        start = f"{low:,.10g}" + " or more" * (high is None)
    if below is not None:
        return f"{start}, below {below:,.10g}"
    return start if high is None else f"{start} to {high:,.10g}"


def _either(texts: Sequence[str]) -> str:
    """`a, b or c`; semicolons stand between what has commas itself."""
    mark = ";" if any("," in text for text in texts) else ""
    return f"{mark} or ".join(filter(None, (f"{mark or ','} ".join(texts[:-1]), texts[-1])))


def _linked(text: str) -> str:
    """`text` of the schema on a page in docs/: other pages become links."""
    return _PAGE.sub(lambda found: f"[{found[1]}]({found[1]}{found[2] or ''})", text)


def _choices(options: Sequence[Schema]) -> list[str]:
    """The values that may be chosen from, as JSON."""
    several = [option.get("enum", [option["const"]] if "const" in option else []) for option in options]
    return [f"`{json.dumps(choice)}`" for choices in several for choice in choices]


def _unique(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(texts))
