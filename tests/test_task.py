"""The task file: what the documents' own files say, and what is said about fifty broken ones."""

from __future__ import annotations

import copy
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import json5
import jsonschema
import pytest
from broken_tasks import BROKEN, Broken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

import tuner.task.file
from tuner.capacity import gpu_range
from tuner.cli import main
from tuner.engines import make_engine
from tuner.errors import TaskError
from tuner.objective import OBJECTIVES, Slo, SloTerm
from tuner.plan import planned_trials
from tuner.scenarios import Deterministic
from tuner.space import Categorical, Condition, Constraint, Float, Integer
from tuner.task import Task, load_task, make_task, task_schema
from tuner.task.model import DEFAULT_MODEL, DEFAULT_PARAMETERS
from tuner.workload import LoadLevel

pytestmark = pytest.mark.filterwarnings("error")

ROOT = Path(__file__).parents[1]
FRAGMENTS = ROOT / "tests/data/fragments"
FULL = ROOT / "configs/bayesian-llama3-tune.json"
FILES = sorted([*(ROOT / "configs").glob("*.*"), *FRAGMENTS.glob("*.*")])
FULL_DATA: dict[str, Any] = json.loads(FULL.read_text())


def data_of(path: Path) -> Any:
    """A task file's plain data, read without this project."""
    text = path.read_text()
    return YAML(typ="safe").load(text) if path.suffix in {".yaml", ".yml"} else json5.loads(text)


def written(folder: Path, content: str | bytes, name: str = "task.json") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- what files say ------------------------------------------------------------------------------------


def test_the_full_task_says_what_its_keys_say() -> None:
    task = load_task(FULL)
    assert task.task_name == "bayesian-llama3-tune"
    assert task.description == "Bayesian optimization for Llama 3.2-1B"
    assert (task.model.id_or_path, task.model.namespace) == ("llama-3-2-1b-instruct", "autotuner")
    assert (task.base_runtime, task.runtime_image_tag) == ("sglang", "v0.5.2-cu126")
    assert task.space.domains == {
        "tp-size": Categorical((1, 2)),
        "mem-fraction-static": Categorical((0.7, 0.75, 0.8, 0.85, 0.9)),
        "schedule-policy": Categorical(("lpm", "fcfs")),
        "chunked-prefill-size": Categorical((512, 1024, 2048, 4096)),
    }
    assert (task.space.size, task.space.constraints) == (80, ())
    assert (task.optimization.strategy, task.optimization.sampler) == ("bayesian", "auto")
    assert task.objective is OBJECTIVES["minimize_latency"]
    assert (task.optimization.max_iterations, task.optimization.timeout_per_iteration) == (30, 600)
    assert (task.optimization.n_initial_random, task.optimization.baseline) == (5, True)
    assert task.slo_terms == Slo((), 0.1)
    assert task.served_model_name == "Llama-3.2-1B-Instruct"
    assert task.benchmark.model_tokenizer == "meta-llama/Llama-3.2-1B-Instruct"
    assert task.benchmark.additional_params == {"temperature": 0.0}
    assert task.levels(7) == tuple(
        LoadLevel(
            Deterministic(100, 100),
            concurrency=concurrency,
            max_requests=100,
            max_time_s=30.0,
            warmup_requests=concurrency,
            seed=7,
        )
        for concurrency in (4, 8)
    )


def test_what_only_sounds_secret_is_taken_into_requests() -> None:
    taken = {"prompt_cache_key": "mine", "max_tokens": 9, "response_format": {"token": {"type": "string"}}}
    assert make_task({"benchmark": {"additional_params": taken}}).benchmark.additional_params == taken


def test_minimal_runs_on_the_simulator() -> None:
    task = load_task(ROOT / "configs/minimal.json")
    assert (task.task_name, task.base_runtime) == ("minimal", "simulator")
    assert task.model.id_or_path == task.served_model_name == DEFAULT_MODEL
    assert list(task.parameters) == ["tp-size", "mem-fraction-static", "schedule-policy"]
    assert (task.space.size, task.optimization.max_iterations) == (30, 50)
    assert planned_trials(task) == 31


def test_the_slo_fragment_is_one_hard_promise() -> None:
    task = load_task(FRAGMENTS / "slo.json")
    assert task.slo_terms == Slo((SloTerm("latency", "p90", 5.0, 2.0, True, 0.2),), 0.1)
    assert task.parameters == DEFAULT_PARAMETERS


def test_a_comment_at_the_end_of_a_line() -> None:
    task = load_task(FRAGMENTS / "start-small.jsonc")
    assert (task.task_name, task.optimization.max_iterations) == ("start-small", 20)


def test_an_empty_object_is_a_task_of_defaults(tmp_path: Path) -> None:
    task = load_task(written(tmp_path, "{}", "quick.json"))
    assert task.task_name == "quick"
    assert (task.optimization.max_iterations, task.optimization.n_initial_random) == (100, 5)
    assert (task.optimization.objective, task.optimization.timeout_per_iteration) == ("minimize_latency", 600)
    assert [str(level.scenario) for level in task.levels(0)] == ["D(100,100)"] * 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_loads(path: Path) -> None:
    task = load_task(path)
    assert task.levels(1)
    assert task.space.size >= 1


def test_every_kind_of_parameter() -> None:
    task = make_task(
        {
            "parameters": {
                "list": ["a", None, True, 1, 2.5],
                "categorical": {"type": "categorical", "values": [1, 2]},
                "boolean": {"type": "boolean"},
                "integer": {"type": "integer", "low": 1, "high": 9, "step": 2},
                "log-integer": {"type": "integer", "low": 1, "high": 1024, "log": True},
                "float": {"type": "float", "low": 0, "high": 1},
                "continuous": {"type": "continuous", "low": 0.5, "high": 2.5, "step": 0.5},
            }
        }
    )
    assert task.space.domains == {
        "list": Categorical(("a", None, True, 1, 2.5)),
        "categorical": Categorical((1, 2)),
        "boolean": Categorical((False, True)),
        "integer": Integer(1, 9, 2),
        "log-integer": Integer(1, 1024, log=True),
        "float": Float(0.0, 1.0),
        "continuous": Float(0.5, 2.5, 0.5),
    }


def test_constraints_take_a_value_a_list_or_a_range() -> None:
    task = make_task(
        {
            "parameters": {"tp-size": [1, 2, 4], "policy": ["lpm", "fcfs"], "mem": [0.7, 0.9]},
            "constraints": [
                {"when": {"tp-size": 1}, "require": {"mem": {"high": 0.8}}},
                {"when": {"tp-size": {"low": 2, "high": 3}}, "require": {"policy": ["lpm"]}},
            ],
        }
    )
    assert task.space.constraints == (
        Constraint({"tp-size": Condition((1,))}, {"mem": Condition(high=0.8)}),
        Constraint({"tp-size": Condition(low=2, high=3)}, {"policy": Condition(("lpm",))}),
    )
    assert [tuple(config.values()) for config in task.space.grid()] == [
        (1, "lpm", 0.7),
        (1, "fcfs", 0.7),
        (2, "lpm", 0.7),
        (2, "lpm", 0.9),
        (4, "lpm", 0.7),
        (4, "lpm", 0.9),
        (4, "fcfs", 0.7),
        (4, "fcfs", 0.9),
    ]


def test_slo_terms_in_the_order_of_latency_ttft_tpot() -> None:
    task = make_task(
        {
            "slo": {
                "tpot": {"threshold": 0.02, "weight": 3.0},
                "latency": {"p99": {"threshold": 9}, "p50": {"threshold": 1, "hard_fail": True}},
                "steepness": 0.5,
            }
        }
    )
    assert task.slo_terms == Slo(
        (
            SloTerm("latency", "p50", 1.0, hard_fail=True),
            SloTerm("latency", "p99", 9.0),
            SloTerm("tpot", "mean", 0.02, weight=3.0),
        ),
        0.5,
    )


def test_levels_are_every_scenario_at_every_concurrency() -> None:
    load = {
        "traffic_scenarios": ["N(480,240)/(300,150)", " U(50,100) / (200,250) "],
        "num_concurrency": [8, 1],
        "max_time_per_iteration": 2.5,
        "max_requests_per_iteration": 7,
        "warmup_requests": 0,
    }
    levels = make_task({"benchmark": load}).levels(3)
    assert [(str(level.scenario), level.concurrency) for level in levels] == [
        ("N(480,240)/(300,150)", 8),
        ("N(480,240)/(300,150)", 1),
        ("U(50,100)/(200,250)", 8),
        ("U(50,100)/(200,250)", 1),
    ]
    assert {(level.max_time_s, level.max_requests, level.warmup_requests) for level in levels} == {
        (2.5, 8, 0),  # one for each stream
        (2.5, 7, 0),
    }


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_can_be_asked_for(name: str) -> None:
    promise = {"slo": {"ttft": {"threshold": 1.0}}}
    assert make_task({"optimization": {"objective": name}, **promise}).objective is OBJECTIVES[name]


def test_engine_options() -> None:
    engine = {
        "python": "/opt/sglang/bin/python",
        "args": {"attention-backend": "triton", "enable-metrics": True},
        "env": {"HF_HUB_OFFLINE": "1"},
        "start_timeout": 90,
        "hang_timeout": 20.0,
    }
    task = make_task({"engine": engine})
    assert task.engine.model_dump(exclude={"command"}) == engine
    command = ["numactl", "-N", "0", "python3", "-m", "sglang.launch_server"]
    assert make_task({"engine": {"command": command}}).engine.command == command


@pytest.mark.parametrize(
    ("sections", "stops"),
    [
        ({}, True),
        ({"optimization": {"early_stopping": False}}, False),
        ({"optimization": {"strategy": "grid"}}, False),
        ({"optimization": {"objective": ["minimize_ttft", "maximize_throughput"]}}, False),
        (
            {
                "benchmark": {"find": "max_load", "num_concurrency": [1, 64]},
                "slo": {"ttft": {"threshold": 1}},
                "optimization": {"objective": "maximize_throughput"},
            },
            False,
        ),
    ],
    ids=str,
)
def test_which_tasks_stop_trials(sections: dict[str, Any], stops: bool) -> None:
    assert make_task(sections).stops_trials is stops


def test_a_task_never_changes() -> None:
    task = load_task(FULL)
    with pytest.raises(ValueError, match="frozen"):
        task.optimization.max_iterations = 1  # type: ignore[misc]


def test_comments_commas_and_yaml_give_the_same_task(tmp_path: Path) -> None:
    plain = load_task(FULL)
    text = FULL.read_text()
    commented = "// first\n" + text.replace('"model": {', '/* the\n model */ "model": { // it').replace(
        "[1, 2]", "[1, 2,]"
    ).replace('"temperature": 0.0\n', '"temperature": 0.0,\n')
    assert commented.count("//") == 2 and commented.count(",]") == 1
    assert load_task(written(tmp_path, commented, "a.jsonc")) == plain
    assert load_task(written(tmp_path, b"\xef\xbb\xbf" + text.encode(), "bom.json")) == plain
    assert load_task(written(tmp_path, text, "json-is-yaml.yaml")) == plain
    with (tmp_path / "b.yml").open("w") as file:
        YAML(typ="safe").dump(FULL_DATA, file)
    assert load_task(tmp_path / "b.yml") == plain


# --- what is said about broken files -------------------------------------------------------------------


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.id)
def test_a_broken_file_is_refused_with_every_reason(
    broken: Broken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, broken.content, broken.name)
    with pytest.raises(TaskError) as raised:
        load_task(path)
    assert raised.value.exit_code == 2
    lines = str(raised.value).splitlines()
    assert len(lines) == len(broken.problems)
    for line, (place, text) in zip(lines, broken.problems, strict=True):
        assert line.startswith(f"{path}: {place}: " if place else f"{path}: "), line
        assert text in line
        assert line.isprintable() and len(line) < len(str(path)) + 400

    with pytest.raises(SystemExit) as ended:
        main(["check", str(path)])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.err == f"error: {raised.value}\n"
    assert not said.out


def test_the_table_is_long_enough() -> None:
    assert len(BROKEN) >= 50
    assert len({broken.id for broken in BROKEN}) == len(BROKEN)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "Is a directory"),
        ("missing.json", "No such file or directory"),
        ("task.json/below", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("a\0b", "embedded null byte"),
    ],
    ids=["directory", "missing", "below a file", "long name", "nul"],
)
def test_what_cannot_be_read(name: str, reason: str, tmp_path: Path) -> None:
    written(tmp_path, "{}")
    with pytest.raises(TaskError) as raised:
        load_task(tmp_path / name)
    assert str(raised.value) == f"{tmp_path / name}: cannot be read: {reason}"


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(TaskError, match="is too long"):
        load_task("/dev/zero")


# --- any file at all -----------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([10**400, -(10**30), 2**53, 2**53 + 1, 2**31, 2**64]),
    st.floats(),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.text(st.characters(exclude_categories=()), max_size=8),
    st.sampled_from(["grid", "random", "float", "integer", "boolean", "D(1,2)", "sglang", "tp-size", "p90"]),
)
KNOWN_KEYS = sorted(
    {
        "low",
        "high",
        "step",
        "log",
        "type",
        "values",
        "when",
        "require",
        "threshold",
        "tp-size",
        "<list>",
        "[key]",
    }
    | set(FULL_DATA)
    | {key for value in FULL_DATA.values() if isinstance(value, dict) for key in value}
)
KEYS = st.one_of(st.sampled_from(KNOWN_KEYS), st.text(st.characters(exclude_categories=()), max_size=5))
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
VALID: dict[str, Any] = {
    **FULL_DATA,
    "parameters": {
        **FULL_DATA["parameters"],
        "steps": {"type": "integer", "low": 1, "high": 9, "step": 2},
        "ratio": {"type": "float", "low": 0.1, "high": 0.9, "log": True},
        "flag": {"type": "boolean"},
        "kind": {"type": "categorical", "values": ["a", "b"]},
    },
    "constraints": [{"when": {"tp-size": 1}, "require": {"ratio": {"low": 0.2}, "kind": ["a"]}}],
    "slo": {"latency": {"p90": {"threshold": 5.0, "hard_fail": True}}, "ttft": {"threshold": 1.0}},
    "engine": {"args": {"dp-size": 1}, "env": {"A": "b"}},
}


def places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value below `node`."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, value in items for place in ((*at, key), *places(value, (*at, key)))]


def usable(task: Task) -> None:
    """What the rest of the program asks of every task."""
    assert task.space.size >= 1
    assert math.isfinite(task.slo_terms.steepness)
    assert planned_trials(task) >= 1
    json.dumps(task.model_dump(), allow_nan=False).encode()
    for engine in ("sglang", "vllm"):
        with suppress(TaskError):  # for a size that is none
            fewest, most = gpu_range(task.space, make_engine(task, engine))
            assert 0 <= fewest <= most


def task_or_task_error(make: Any) -> None:
    try:
        task = make()
    except TaskError as error:
        assert error.problems
        str(error).encode()
    else:
        usable(task)


def test_the_valid_task_that_is_mutated_is_valid() -> None:
    usable(make_task(VALID))


@given(data=JSON)
@settings(max_examples=150)
@example(data={"parameters": {"a": {"type": "integer", "low": 1, "high": 2, "step": 0}}})
@example(data={"parameters": {f"p{i}": {"type": "integer", "low": 0, "high": 2**53} for i in range(25)}})
@example(data={"parameters": {"tp-size": {"type": "integer", "low": 1, "high": 4}, "pp-size": [2, 1]}})
def test_any_json_gives_a_task_or_a_task_error(data: Any) -> None:
    task_or_task_error(lambda: make_task(data))


@given(data=st.data())
@settings(max_examples=300)
def test_any_change_to_a_valid_task_gives_a_task_or_a_task_error(data: st.DataObject) -> None:
    changed = copy.deepcopy(VALID)
    for _ in range(data.draw(st.integers(1, 2))):
        *above, last = data.draw(st.sampled_from(places(changed)))
        node = changed
        for key in above:
            node = node[key]
        change = data.draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if change == "remove":
            del node[last]
        elif change == "add" and isinstance(node, dict):
            node[data.draw(KEYS)] = data.draw(JSON)
        else:
            node[last] = data.draw(JSON)
    task_or_task_error(lambda: make_task(changed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


YAML_BITS = st.sampled_from(
    [
        *"[]{}:,-?&*!|>%@`'\"#~\n\té\x85\ufeff",
        *(
            "  ",
            ": ",
            "- ",
            "? ",
            "&a ",
            "*a ",
            "<<: ",
            "---\n",
            "x",
            "1",
            "0o7",
            "1e5",
            ".nan",
            "2001-01-01",
        ),
        *(f"!!{tag} " for tag in ["int", "float", "bool", "timestamp", "omap", "set", "binary", "null"]),
        *("parameters", "tp-size"),
    ]
)
JSON_BITS = st.sampled_from(
    [
        *"[]{}:,\"'/*+-.\\x\n\u2028\0",
        *(
            "//",
            "/*",
            "*/",
            "0x",
            "1e",
            "NaN",
            "Infinity",
            "null",
            "\\u",
            "\\ud800",
            "9" * 30,
            '"parameters"',
        ),
    ]
)
FILES_OF_BITS = st.one_of(*(st.lists(bits, max_size=25).map("".join) for bits in (YAML_BITS, JSON_BITS)))


@given(content=st.binary(max_size=60) | FILES_OF_BITS.map(str.encode))
@settings(max_examples=300)
def test_any_bytes_give_a_task_or_a_task_error(folder: Path, content: bytes) -> None:
    for name in ("any.json", "any.yaml"):
        path = written(folder, content, name)
        task_or_task_error(lambda path=path: load_task(path))  # type: ignore[misc]


@given(data=JSON)
def test_json_text_reads_as_the_data_that_was_written(folder: Path, data: Any) -> None:
    path = written(folder, json.dumps({"task_name": "any", "x": data}), "any.json")
    outcomes = []
    for make in (lambda: load_task(path), lambda: make_task({"task_name": "any", "x": data}, str(path))):
        try:
            outcomes.append(make())
        except TaskError as error:
            outcomes.append(error.problems)
    assert outcomes[0] == outcomes[1] or "nan" in str(outcomes)


# --- the schema ----------------------------------------------------------------------------------------

SCHEMA = json.loads(task_schema())


def test_the_schema_beside_the_models_is_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    kept = Path(tuner.task.file.__file__).with_name("task.schema.json").read_text()
    with pytest.raises(SystemExit) as ended:
        main(["schema"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == kept == task_schema(), "run `make schema`"
    jsonschema.Draft202012Validator.check_schema(json.loads(kept))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_valid_by_the_schema(path: Path) -> None:
    jsonschema.validate(data_of(path), SCHEMA)


@pytest.mark.parametrize(
    ("data", "valid"),
    [
        ({}, True),
        (VALID, True),
        ({"slo": {"ttft": {"threshold": 1}}}, True),
        ({"slo": {"ttft": {"p90": {"threshold": 1}}}}, True),
        ({"constraints": [{"when": {"a": {"low": 1}}, "require": {"b": ["x"]}}]}, True),
        ({"slo": {"ttft": {"p91": {"threshold": 1}}}}, False),
        ({"optimization": {"stratgy": "grid"}}, False),
        ({"optimization": {"strategy": "bayes"}}, False),
        ({"parameters": {"a": "x"}}, False),
        ({"parameters": {"a": {"type": "enum"}}}, False),
        ({"parameters": {"a": [[1]]}}, False),
        ({"benchmark": {"num_concurrency": []}}, False),
    ],
)
def test_the_schema_knows_right_from_wrong(data: Any, valid: bool) -> None:
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(data) is valid


def test_what_only_the_whole_shows_is_reported_beside_what_each_key_shows() -> None:
    with pytest.raises(TaskError) as refused:
        make_task({"optimisation": {}, "parameters": {"host": [1], "a": []}, "engine": {"arg": {}}}, "f")
    text = str(refused.value)
    for path in ("optimisation", "parameters.host", "parameters.a", "engine.arg"):
        assert f"f: {path}: " in text


def test_goodput_needs_promises() -> None:
    goodput = {"optimization": {"objective": "maximize_goodput"}}
    with pytest.raises(TaskError, match=r"optimization\.objective: maximize_goodput counts .* give slo"):
        make_task(goodput)
    assert make_task({**goodput, "slo": {"ttft": {"threshold": 1}}}).objective.unit == "requests/s/GPU"
