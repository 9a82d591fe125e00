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

from tuner.task import Task, load_task, make_task

REPOSITORY = Path(__file__).parent.parent
DOCUMENTS = [*sorted(REPOSITORY.glob("*.md")), *sorted(REPOSITORY.glob("docs/**/*.md"))]
_BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(document, text) of every code block in `language`."""
    for path in DOCUMENTS:
        for found, text in _BLOCK.findall(path.read_text()):
            if found == language:
                yield path.name, text


def commands() -> list[list[str]]:
    """Every command of the documents' shell blocks, as words."""
    lines = [line for _, text in blocks("sh") for line in text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


TUNER = [words for words in commands() if words[0] == "tuner"]


def test_every_command_is_proved_somewhere() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    jobs = (REPOSITORY / "tests" / "test_jobs.py").read_text()
    for words in commands():
        if words[0] == "make":  # run by CI and by hand: a test that runs `make test` would not end
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        elif words[:3] == ["ray", "job", "submit"]:
            script = words[words.index("python") + 1]
            assert script in jobs and (REPOSITORY / script).exists(), words
        elif words[0] == "RAY_ADDRESS=auto":
            assert words[1:3] == ["tuner", "run"], words  # a job's driver is started in the same way
        else:
            assert words in TUNER or words[0] == "export", words


def test_scripts_of_the_shell_are_run_by_a_test() -> None:
    assert {document for document, _ in blocks("bash")} == {"serve.md"}  # tests/test_serve_ray.py runs them


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
def test_the_commands_run_in_the_order_of_the_documents(workplace: Path) -> None:
    assert len(TUNER) >= 6
    for words in TUNER:
        done = run(["-m", "tuner.cli", *words[1:]], workplace)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert done.stdout.strip(), words


@pytest.mark.ray
@pytest.mark.slow
def test_the_driver_script_runs(workplace: Path) -> None:
    (script,) = [text for document, text in blocks("python") if document == "cluster.md"]
    done = run(["-c", script], workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(" s")
    assert list((workplace / "results").glob("*/trials/*.parquet"))


def _keys(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, default) of every key of the task's sections, those below `slo` left out."""
    for name, field in model.model_fields.items():
        section = field.annotation
        if hasattr(section, "model_fields") and name != "slo":
            yield from _keys(section, f"{prefix}{name}.")
        elif name != "slo":
            yield f"{prefix}{name}", None if field.is_required() else field.default


def test_the_table_of_keys_is_complete_and_its_defaults_are_true() -> None:
    text = (REPOSITORY / "docs" / "task-file.md").read_text()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", text, re.MULTILINE))
    for path, default in _keys(Task):
        assert path in rows, f"{path} is not explained"
        if isinstance(default, str | int | float | list | dict) and path != "parameters" and default != "":
            assert rows[path] == f"`{json.dumps(default)}`" or path == "task_name", path


def test_the_schema_that_is_checked_in_is_the_models(tmp_path: Path) -> None:
    from tuner.task import task_schema

    assert (REPOSITORY / "tuner" / "task" / "task.schema.json").read_text() == task_schema()


def test_links_between_documents_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_quickstart_is_a_task() -> None:
    assert load_task(REPOSITORY / "configs" / "quickstart.json").base_runtime == "simulator"
