"""docs/troubleshooting.md quotes this program, and Ray, in their own words."""

from __future__ import annotations

import ast
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tuner.failures import Cause

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
GAP = "…"  # on the page, and here in place of what a message's f-string fills in
RAYS = "Ray's own words"
_SECTION = re.compile(r"^## (.+?)$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def quoted() -> Iterator[tuple[str, str]]:
    """(section, message) of every message in the first column of a table, and in the text."""
    for section, text in _SECTION.findall(PAGE):
        for cell in re.findall(r"^\| (`.*?) \| ", text, re.MULTILINE):
            yield from ((section, message) for message in re.findall(r"`(.+?)`", cell))
    yield from (("text", words) for words in re.findall(r"^`([^`]+)`", PAGE, re.MULTILINE))


MESSAGES = sorted(set(quoted()))


def _texts(node: ast.AST) -> Iterator[str]:
    """The strings of a module, with a gap for each value that is filled in."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from _texts(child)


@pytest.fixture(scope="module")
def ours() -> list[str]:
    """Every string of this program but its documentation, in a form in which wildcards are one letter."""
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "tuner").rglob("*.py"))]
    documented = {
        ast.get_docstring(node, clean=False)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return [text.replace("%s", GAP).replace("%d", GAP).replace("%g", GAP).replace("%.3f", GAP)
            for tree in trees for text in _texts(tree) if text not in documented]  # fmt: skip


def _found(message: str, texts: list[str]) -> bool:
    """Whether one of the texts has the message's words, in order, where its own gaps may be anything."""
    words = [re.escape(part) for part in message.split(GAP) if part.strip()]
    return any(re.search(".*".join(words), text, re.DOTALL) for text in texts)


def test_the_page_quotes_enough_to_be_of_use() -> None:
    assert len(MESSAGES) > 60
    assert {cause.value for cause in Cause} <= {message for _, message in MESSAGES}


@pytest.mark.parametrize(
    "message", [message for section, message in MESSAGES if section not in (RAYS, "Exit codes")]
)
def test_a_message_is_what_the_program_says(message: str, ours: list[str]) -> None:
    assert _found(message, ours)


def test_a_message_of_yesterday_would_be_noticed(ours: list[str]) -> None:
    assert not _found("study … is being run by another driver", ours)
    assert not _found("Node … is left out from now on: it has lost … trials", ours)


@pytest.mark.parametrize("message", [message for section, message in MESSAGES if section == RAYS])
def test_a_message_of_ray_is_in_ray(message: str) -> None:
    folder = Path(ray.__file__).parent
    programs = [
        folder / "_raylet.so",
        folder / "core/src/ray/raylet/raylet",
        folder / "core/src/ray/gcs/gcs_server",
    ]
    [words] = [part.strip().encode() for part in message.split(GAP) if part.strip()]
    texts = (re.sub(rb'" *\n *f?"', b"", path.read_bytes()) for path in folder.glob("_private/**/*.py"))
    assert any(words in text for text in texts) or any(_contains(path, words) for path in programs)


def _contains(path: Path, words: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(words) >= 0
