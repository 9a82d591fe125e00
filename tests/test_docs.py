"""What the documents say is so: their commands run, their task files load, their tables are complete."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import json5
import pytest

from tuner.task import load_task, make_task, task_schema, task_tables

REPOSITORY = Path(__file__).parent.parent
DOCUMENTS = [*sorted(REPOSITORY.glob("*.md")), *sorted(REPOSITORY.glob("docs/**/*.md"))]
_BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(document, text) of every code block in `language`."""
    for path in DOCUMENTS:
        for found, text in _BLOCK.findall(path.read_text()):
            if found == language:
                yield str(path.relative_to(REPOSITORY)), text


def commands() -> list[tuple[str, list[str]]]:
    """(document, words) of every command in the documents' shell blocks."""
    lines = [(path, line) for path, text in blocks("sh") for line in text.splitlines()]
    return [(path, words) for path, line in lines if (words := shlex.split(line, comments=True))]


TUNER = [(path, words) for path, words in commands() if words[0] == "tuner"]


def test_every_command_is_proved_somewhere() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    jobs = (REPOSITORY / "tests" / "test_jobs.py").read_text()
    for _, words in commands():
        if words[0] == "make":  # run by CI and by hand: a test that runs `make test` would not end
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        elif words[:3] == ["ray", "job", "submit"]:
            script = words[words.index("python") + 1]
            assert script in jobs and (REPOSITORY / script).exists(), words
        elif words[0] == "RAY_ADDRESS=auto":
            assert words[1:3] == ["tuner", "run"], words  # a job's driver is started in the same way
        else:
            assert words[0] in ("tuner", "export"), words


def test_scripts_of_the_shell_are_run_by_a_test() -> None:
    assert {document for document, _ in blocks("bash")} == {
        "docs/serve.md"
    }  # tests/test_serve_ray.py runs them


@pytest.mark.parametrize("text", [text for _, text in blocks("json")])
def test_every_task_file_in_the_documents_loads(text: str) -> None:
    make_task(json5.loads(text), "document")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task files that the documents' commands name, cut short."""
    folder = tmp_path_factory.mktemp("workplace")
    task = json5.loads((REPOSITORY / "configs" / "quickstart.json").read_text())
    task["optimization"] |= {"max_iterations": 3, "confirm": 1}
    task["benchmark"]["max_requests_per_iteration"] = 5
    (folder / "configs").mkdir()
    (folder / "configs" / "quickstart.json").write_text(json.dumps(task))
    task = json5.loads((REPOSITORY / "configs" / "minimal.json").read_text())
    task["optimization"] |= {"max_iterations": 12, "confirm": 0}
    task["engine"] = {"args": {"calibration": '{"memory": 0.4, "decode_s": 0.008}'}}  # to be found
    (folder / "configs" / "minimal.json").write_text(json.dumps(task))
    task = json5.loads((REPOSITORY / "configs" / "one-gpu.json").read_text())
    del task["slo"]  # which a busy machine breaks
    task["optimization"] |= {"max_iterations": 3, "confirm": 1}
    task["benchmark"] |= {"num_concurrency": [2], "traffic_scenarios": ["D(100,20)"]}
    task["benchmark"]["max_requests_per_iteration"] = 5
    (folder / "configs" / "one-gpu.json").write_text(json.dumps(task))
    first = run(["-m", "tuner.cli", "run", "configs/quickstart.json", "--virtual"], folder)
    assert first.returncode == 0, first.stderr  # for the documents that go on with the newest study
    return folder


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env |= {"XDG_DATA_HOME": str(folder / "data"), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)  # of a tutorial's dozen commands, on a machine that does other things as well
@pytest.mark.parametrize("document", sorted({path for path, _ in TUNER}))
def test_the_commands_run_in_the_order_of_the_document(document: str, workplace: Path) -> None:
    for words in (words for path, words in TUNER if path == document):
        done = run(["-m", "tuner.cli", *words[1:]], workplace)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert done.stdout.strip(), words


@pytest.mark.ray
@pytest.mark.slow
def test_the_driver_script_runs(workplace: Path) -> None:
    (script,) = [text for document, text in blocks("python") if document == "docs/cluster.md"]
    done = run(["-c", script], workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(" s")
    assert list((workplace / "results").glob("*/trials/*.parquet"))


def _described(schema: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(place, description) of every key below a schema's part."""
    for name, part in schema.items() if isinstance(schema, dict) else ():
        if name == "properties":
            yield from ((f"{path}.{key}", field.get("description", "")) for key, field in part.items())
        yield from _described(part, f"{path}.{name}")


def test_every_key_of_a_task_is_explained_to_editors() -> None:
    schema = json.loads(task_schema())
    described = dict(_described(schema))
    sections = {key for key, field in schema["properties"].items() if "$ref" in field}
    bare = {place for place, text in described.items() if not text}
    assert len(described) > 60
    assert bare == {f".{key}" for key in sections - {"model"}}  # what a section is, it says itself


def test_the_tables_of_keys_are_those_of_the_models() -> None:
    page = (REPOSITORY / "docs" / "task-file.md").read_text()
    shown = re.search(r"^<!-- keys.*?-->\n\n(.*?)\n<!-- end of keys -->$", page, re.MULTILINE | re.DOTALL)
    assert shown, "docs/task-file.md has lost its marks"
    assert shown[1] == task_tables(), "`make schema` renews them"


@pytest.mark.parametrize(
    "row",
    [
        "| `slo.*.*.threshold` | seconds, above 0 to 2,592,000 | – |",
        "| `parameters.*.step` | integer, 1 or more; or number, above 0 | `1` or none |",
        "| `benchmark.num_concurrency` | list of integers, 1 to 4,096 | `[4, 8]` |",
        '| `benchmark.tool` | `"native"` or `"genai-bench"` | `"native"` |',
        "| `benchmark.model_name` | text | `model.id_or_path` |",  # said by the description, not by null
        "| `optimization.convergence.least_gain` | number, above 0, below 1 | `0.001` |",
        "| `engine.command` | list of texts | none |",
    ],
)
def test_types_and_defaults_are_in_words(row: str) -> None:
    assert task_tables().count(row) == 1


def test_the_schema_that_is_checked_in_is_the_models() -> None:
    assert (REPOSITORY / "tuner" / "task" / "task.schema.json").read_text() == task_schema()


def _links(path: Path) -> Iterator[tuple[Path, str]]:
    """(file, anchor) of every link of a document that stays in this repository."""
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        yield (path.parent / file if file else path).resolve(), anchor


def _anchors(path: Path) -> set[str]:
    """The headings of a document as links name them."""
    prose = _BLOCK.sub("", path.read_text())
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_documents_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target, anchor in _links(path):
            assert target.exists(), f"{path.name}: {target}"
            assert not anchor or anchor in _anchors(target), f"{path.name}: {target.name}#{anchor}"


@pytest.mark.parametrize("index", ["README.md", "docs/README.md"])
def test_every_page_is_one_click_away(index: str) -> None:
    linked = {target for target, _ in _links(REPOSITORY / index)}
    pages = {*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")} - {
        REPOSITORY / index,
        REPOSITORY / "README.md",
    }
    assert not {page.name for page in pages - linked}


def test_the_quickstart_is_a_task() -> None:
    assert load_task(REPOSITORY / "configs" / "quickstart.json").base_runtime == "simulator"
