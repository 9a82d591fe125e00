"""Imports point down only; a few libraries have one home each; only the command line prints."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import tuner
from tuner.registry import engines

ROOT = Path(__file__).parents[1]

# From the bottom to the top. A module may import from its own layer and from those before it.
LAYERS = {
    "base": "errors registry secrets loopback",
    "domain": "task space scenarios workload levels prompts datasets vocabulary metrics objective failures "
    "plan stopping suggestion progress analysis",
    "adapters": "engines load results report export",
    "compose": "measure evaluate rows past accelerators capacity rig predict experience forecast calibrate "
    "bench check verify publish standing overview",
    "ray": "search sharing cluster dashboard trial recorder study",
    "surfaces": "cli live serve jobs",
}
RANK = {part: rank for rank, parts in enumerate(LAYERS.values()) for part in parts.split()}

# (importer, imported): the names that may be imported all the same, and why.
ACCEPTED = {
    # What analysis is a function of: frames and nothing else, kept beside the schema of their columns.
    ("analysis", "results"): {"StudyResults"},
}
STRANGERS = [("engines", "load"), ("load", "engines")]  # in one layer, and never to know of each other

HOMES = {
    "ray": {"search", "sharing", "cluster", "dashboard", "trial", "recorder", "study", "serve"},
    "optuna": {"search", "publish"},
    "mlflow": {"publish"},
    "pyarrow": {"results"},
    "json5": {"task"},
    "pydantic": {"task", "serve"},
    "fastapi": {"serve"},
    "matplotlib": {"report"},
    "click": {"cli"},
    "pickle": set(),
}

FILES = sorted([*(ROOT / "tuner").rglob("*.py"), *(ROOT / "jobs").glob("*.py")])
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def part_of(path: Path) -> str:
    """`tuner/task/file.py` is of `task`, `jobs/tune.py` of `jobs`; empty for the package itself."""
    folder, *rest = path.relative_to(ROOT).parts
    return "" if rest == ["__init__.py"] else folder if folder == "jobs" else rest[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, set[str]]]:
    """Every module that is imported anywhere, also within functions, with the names that are taken."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, set()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            if node.module == "tuner":
                yield from ((f"tuner.{alias.name}", set()) for alias in node.names)
            else:
                yield node.module, {alias.name for alias in node.names}


def own_imports(path: Path) -> Iterator[tuple[str, set[str]]]:
    """The parts of this project that a file imports."""
    for module, names in imports(TREES[path]):
        top, _, rest = module.partition(".")
        if top == "tuner" and rest and rest != "__version__":
            yield rest.partition(".")[0], names


def test_every_module_has_its_layer() -> None:
    assert {part_of(path) for path in FILES} - {""} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    importer = part_of(path)
    for imported, names in own_imports(path):
        if not importer or ((importer, imported) in ACCEPTED and names <= ACCEPTED[importer, imported]):
            continue
        assert RANK[imported] <= RANK[importer], f"{importer} imports {imported}"
        assert (importer, imported) not in STRANGERS


def test_every_exception_is_still_needed() -> None:
    used = {(part_of(path), imported) for path in FILES for imported, _ in own_imports(path)}
    assert set(ACCEPTED) <= used


def test_the_reader_of_imports_sees_them_all() -> None:
    source = "import a.b\nfrom tuner import x, y as z\ndef f():\n    from c.d import e\n    import g as h\n"
    found = list(imports(ast.parse(source)))
    assert sorted(module for module, _ in found) == ["a.b", "c.d", "g", "tuner.x", "tuner.y"]
    assert ("c.d", {"e"}) in found


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_where_it_belongs(library: str) -> None:
    users = {
        part_of(path)
        for path in FILES
        for module, _ in imports(TREES[path])
        if module.partition(".")[0] == library
    }
    assert users <= HOMES[library]
    assert users or not HOMES[library]


def test_only_the_command_line_prints() -> None:
    for path, tree in TREES.items():
        if part_of(path) == "cli":
            continue
        names = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not names & {"print", "pprint"}, path


# What runs text, or builds any object from bytes, by the last word of its name.
DANGEROUS = {"eval", "exec", "compile", "__import__", "system", "popen", "getoutput", "getstatusoutput"}
UNPICKLES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


def test_no_shell_no_eval() -> None:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                assert not any(keyword.arg == "shell" for keyword in node.keywords), path
                name = ast.unparse(node.func)
                assert name == "re.compile" or name.rpartition(".")[2] not in DANGEROUS, (path, name)


def test_nothing_is_unpickled_but_what_tune_wrote_in_this_process() -> None:
    """`recorder` reads a trial's exception from the study's own temporary folder."""
    users = {
        part_of(path)
        for path in FILES
        for module, names in imports(TREES[path])
        if UNPICKLES & {module.partition(".")[0], *names}
    }
    assert users == {"recorder"}


def test_the_public_names() -> None:
    assert tuner.__all__ == [
        "ResultStore",
        "StudyOutcome",
        "StudyResults",
        "Task",
        "TaskError",
        "TunerError",
        "__version__",
        "load_task",
        "run_study",
    ]
    for name in tuner.__all__:
        assert getattr(tuner, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tuner.nonsense  # noqa: B018


def test_every_engine_in_the_table_is_there() -> None:
    for name, place in engines().items():
        module, _, attribute = place.partition(":")
        assert module.startswith("tuner.engines.")
        assert getattr(import_module(module), attribute).name == name


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("tuner", "ray pandas numpy pydantic pyarrow"),
        ("tuner.serve, tuner.serve.tokens", "ray fastapi starlette"),
        ("tuner.serve.api", "ray optuna hyperopt"),
        ("tuner.engines.simulator.launch", "ray pandas pydantic pyarrow"),
        (
            "tuner.evaluate, tuner.rows, tuner.bench, tuner.verify, tuner.check, tuner.export, tuner.report, "
            "tuner.live",
            "ray optuna hyperopt",
        ),
        ("tuner.trial", "optuna hyperopt scipy matplotlib"),  # each trial's process pays for it
        ("tuner.study", "hyperopt scipy.stats"),
    ],
)
def test_what_an_import_does_not_bring_along(modules: str, absent: str) -> None:
    program = f"import {modules}, sys; print(*sorted({set(absent.split())} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []
