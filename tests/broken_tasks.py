# ruff: noqa: E501  a table reads best with a file to a line
"""Task files that must be refused, and what must be said of each."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.task.file import MAX_BYTES


@dataclass(frozen=True)
class Broken:
    """A file, and for each problem in it the key's path and what the line must hold beside it."""

    id: str
    content: str | bytes
    problems: list[tuple[str, str]]
    name: str = "task.json"


def wrong(section: str, key: str, value: str, *expected: tuple[str, str]) -> Broken:
    """One key of one section with one value, in JSON."""
    at = f"{section}.{key}" if section else key
    inner = f'{{"{key}": {value}}}'
    content = f'{{"{section}": {inner}}}' if section else inner
    shown = value.replace('"', "'")
    return Broken(f"{at}={value[:30]}{value[30:][-9:]}", content, list(expected) or [(at, f"got {shown}")])


def parameter(name: str, spec: str, *expected: tuple[str, str]) -> Broken:
    return wrong("parameters", name, spec, *expected)


ALIAS_BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name}\n  <<: [{','.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)

# fmt: off
BROKEN = [
    # not a file, not text
    Broken("empty", "", [("", "is empty")]),
    Broken("blank", " \n\t\n", [("", "is empty")]),
    Broken("empty yaml", "", [("", "is empty")], "task.yaml"),
    Broken("yaml of comments", "# nothing\n", [("", "must hold an object")], "task.yaml"),
    Broken("too long", " " * (MAX_BYTES + 1), [("", "is too long: more than 262,144 bytes")]),
    Broken("utf-16", "{}".encode("utf-16"), [("", r"is not UTF-8 text: byte 0 is b'\xff' (save it as UTF-8)")]),
    Broken("latin-1", '{"description": "café"}'.encode("latin-1"), [("", r"byte 20 is b'\xe9'")]),
    Broken("binary", bytes(range(256)), [("", r"byte 128 is b'\x80'")]),
    Broken("binary yaml", bytes(range(1, 128)), [("", "is not YAML: unacceptable character #x0001")], "a.yml"),
    Broken("nul in the text", '{"description": "a\0b"}', [("description", r"got 'a\x00b'")]),
    Broken("nul in a flag's value", r'{"engine": {"args": {"x": "a\u0000"}}}', [("engine.args.x", r"must not hold a NUL character, got 'a\x00'")]),
    Broken("nul between keys", '{\0"description": "a"}', [("", "is not JSON: line 1")]),
    Broken("nul in yaml", "description: a\0b\n", [("", "unacceptable character #x0000")], "task.yaml"),
    Broken("escape codes", r'{"task_name": "\u001b[31mred"}', [("task_name", r"got '\x1b[31mred'")]),
    Broken("half a character", r'{"task_name": "\ud800"}', [("task_name", r"half a surrogate pair, got '\ud800'")]),
    Broken("half a character in a key", r'{"engine": {"\ud800": 1}}', [("engine", r"has the key '\ud800'")]),
    # not an object
    Broken("cut off", '{"task_name": "x", ', [("", "is not JSON: line 1 Unexpected end of input at column 20")]),
    Broken("a list", "[1]", [("", "must hold an object with the task's keys, got [1]")]),
    Broken("a number", "17", [("", "got 17")]),
    Broken("null", "null", [("", "got null")]),
    Broken("only words", "tune my model please", [("", "is not JSON: line 1")]),
    Broken("deep", '{"a":' * 40 + "1" + "}" * 40, [("", "is nested more than 32 levels deep")]),
    Broken("deeper", "[" * 100_000, [("", "is nested more than 32 levels deep")]),
    Broken("deep yaml", "[" * 1000 + "]" * 1000, [("", "is nested more than 32 levels deep")], "task.yaml"),
    # YAML's own traps
    Broken("alias bomb", ALIAS_BOMB, [("", "holds more than 50,000 values")], "task.yaml"),
    Broken("alias bomb in a list", "- x\n- " + ALIAS_BOMB.replace("\n", "\n  "), [("", "got ['x',")], "task.yaml"),
    Broken("merge bomb", MERGE_BOMB, [("", "line 3, column 3: merge keys (<<) are not read")], "task.yaml"),
    Broken("alias of itself", "a: &a [*a]\n", [("", "is nested more than 32 levels deep")], "task.yaml"),
    Broken("alias of nothing", "a: *nope\n", [("", "line 1, column 4: found undefined alias 'nope'")], "task.yaml"),
    Broken("python tag", "a: !!python/object/apply:os.getcwd []\n", [("", "python/object/apply:os.getcwd")], "t.yml"),
    Broken("unknown tag", "a: !secret 1\n", [("", "line 1, column 4: could not determine")], "task.yaml"),
    Broken("bad int tag", "a: !!int x\n", [("", "is not YAML: invalid literal for int() with base 10: 'x'")], "t.yml"),
    Broken("yaml key twice", "engine:\n  args: {}\n  args: {}\n", [("", 'line 3, column 3: found duplicate key "args"')], "t.yml"),
    Broken("timestamp", "task_name: 2024-01-01\n", [("task_name", "got datetime.date(2024, 1, 1) (quote it)")], "task.yaml"),
    Broken("set", "task_name: !!set {x}\n", [("task_name", "got {'x'}")], "task.yaml"),
    Broken("bytes", "task_name: !!binary aGk=\n", [("task_name", "got b'hi'")], "task.yaml"),
    Broken("number as key", "parameters:\n  1: [1]\n", [("parameters", "has the key 1 (keys must be text; quote it)")], "t.yml"),
    Broken("boolean as key", "engine: {args: {true: 1}}\n", [("engine.args", "has the key true")], "t.yml"),
    Broken("list as key", "? [a]\n: 1\n", [("", "has the key ('a',)")], "task.yaml"),
    Broken("object as key", "? {a: 1}\n: 1\n", [("", "line 1, column 3: found unhashable key")], "task.yaml"),
    Broken("list of lists as key", "? [[a]]\n: 1\n", [("", "unhashable type: 'list'")], "task.yaml"),
    Broken("two documents", "{}\n---\n{}\n", [("", "line 2, column 1: expected a single document in the stream, but found another document")], "task.yaml"),
    Broken("tabs", "engine:\n\targs: {}\n", [("", r"line 2, column 1: found character '\t'")], "task.yaml"),
    # keys
    Broken("key twice", '{"model": {"id_or_path": "a", "id_or_path": "b"}}', [("model.id_or_path", "stands 2 times in the same object, with 'a', 'b'")]),
    wrong("optimization", "stratgy", '"grid"', ("optimization.stratgy", "is not a known key, got 'grid' (did you mean strategy?)")),
    wrong("benchmark", "num_concurency", "[1]", ("benchmark.num_concurency", "got [1] (did you mean num_concurrency?)")),
    wrong("", "paramters", "{}", ("paramters", "got {} (did you mean parameters?)")),
    wrong("model", "qqqq", "1", ("model.id_or_path", "is missing"), ("model.qqqq", "got 1 (known here: id_or_path, namespace)")),
    wrong("slo", "e2e", "{}", ("slo.e2e", "known here: latency, ttft, tpot, steepness")),
    wrong("slo", "latency", '{"p91": {"threshold": 1}}', ("slo.latency.p91", "got {'threshold': 1} (did you mean p99?)")),
    wrong("slo", "ttft", '{"threshold": 1, "hard_fial": true}', ("slo.ttft.hard_fial", "got true (did you mean hard_fail?)")),
    parameter("a", '{"type": "float", "low": 1, "high": 2, "steps": 1}', ("parameters.a.steps", "got 1 (did you mean step?)")),
    Broken("key like a tag", '{"<list>": 1, "model": {"id_or_path": "m", "[key]": 2}}', [("model.[key]", "got 2"), ("<list>", "got 1")]),
    Broken("line break in a key", r'{"a\nb": 1}', [(r"'a\nb'", "is not a known key, got 1")]),
    # missing
    wrong("", "base_runtime", '"sglang"', ("model", "is missing (give model.id_or_path, a hub id or a local folder)")),
    wrong("", "model", "{}", ("model.id_or_path", "is missing (Hub id or local folder.)")),
    wrong("slo", "ttft", '{"p90": {}}', ("slo.ttft.p90.threshold", "is missing (Seconds that the latency may not exceed")),
    parameter("a", '{"type": "integer", "low": 1}', ("parameters.a.high", "is missing")),
    Broken("constraint without require", '{"constraints": [{"when": {"tp-size": 1}}]}', [("constraints[0].require", "is missing")]),
    # wrong types
    wrong("", "task_name", "5"),
    wrong("", "description", "true"),
    wrong("", "model", '"llama"'),
    wrong("", "parameters", "[1]"),
    wrong("", "constraints", "{}"),
    wrong("optimization", "max_iterations", "1.5"),
    wrong("optimization", "max_iterations", "true"),
    wrong("optimization", "max_iterations", '"30"'),
    wrong("optimization", "baseline", '"yes"'),
    wrong("optimization", "timeout_per_iteration", '"600"'),
    wrong("optimization", "strategy", '"bayes"'),
    wrong("optimization", "objective", "null"),
    wrong("benchmark", "num_concurrency", '[4, "8"]', ("benchmark.num_concurrency[1]", "must be an integer, got '8'")),
    wrong("benchmark", "num_concurrency", "4", ("benchmark.num_concurrency", "must be a list, got 4")),
    wrong("engine", "env", '{"A": 1}', ("engine.env.A", "must be a string, got 1")),
    wrong("engine", "args", '{"a": [1]}', ("engine.args.a", "must be a number, a string, a boolean or null, got [1]")),
    parameter("a", '"x"', ("parameters.a", "must be a list of values or an object with a type, got 'x'")),
    parameter("a", '{"type": "enum"}', ("parameters.a", "type must be one of categorical, boolean, integer, float, continuous, got 'enum'")),
    parameter("a", '[{"x": 1}]', ("parameters.a[0]", "got {'x': 1}")),
    # empty and repeated
    wrong("", "parameters", "{}", ("parameters", "must not be empty, got {}")),
    parameter("a", "[]", ("parameters.a", "must not be empty")),
    parameter("a", '["x", "y", "x"]', ("parameters.a", "holds 'x' twice")),
    parameter("a", "[1, 1.0]", ("parameters.a", "holds 1.0 twice")),
    parameter("a", f"{list(range(10_001))}", ("parameters.a", "must have at most 10000 items")),
    wrong("benchmark", "traffic_scenarios", "[]", ("benchmark.traffic_scenarios", "must not be empty, got []")),
    wrong("", "base_runtime", '""', ("model", "is missing"), ("base_runtime", "no engine is called '' (known: ")),
    # numbers
    parameter("a", "[1, NaN]", ("parameters.a[1]", "must be a finite number, got NaN")),
    parameter("a", "[-Infinity, 1e999]", ("parameters.a[0]", "got -Infinity"), ("parameters.a[1]", "got Infinity")),
    parameter("a", f"[1{'0' * 400}]", ("parameters.a[0]", "must be within ±2^53, got an integer of 1329 bits")),
    parameter("a", f"[2{'0' * 5000}]", ("", "is not JSON: Exceeds the limit (4300 digits)")),
    parameter("a", f"[0x1{'0' * 5000}]", ("parameters.a[0]", "got an integer of 20001 bits")),
    parameter("a", "[9007199254740993]", ("parameters.a[0]", "must be within ±2^53, got 9007199254740993")),
    wrong("optimization", "max_iterations", "0", ("optimization.max_iterations", "must be >= 1, got 0")),
    wrong("optimization", "seed", "-1", ("optimization.seed", "must be >= 0, got -1")),
    wrong("optimization", "timeout_per_iteration", "NaN", ("optimization.timeout_per_iteration", "got NaN")),
    wrong("benchmark", "max_time_per_iteration", "Infinity", ("benchmark.max_time_per_iteration", "got Infinity")),
    wrong("benchmark", "max_error_rate", "1", ("benchmark.max_error_rate", "must be < 1, got 1")),
    wrong("benchmark", "num_concurrency", "[0, 5000]", ("benchmark.num_concurrency[0]", "must be >= 1, got 0"), ("benchmark.num_concurrency[1]", "must be <= 4096, got 5000")),
    wrong("benchmark", "additional_params", '{"bias": [NaN]}', ("benchmark.additional_params", "must hold finite numbers of a few digits, got {'bias': [NaN]}")),
    wrong("slo", "latency", '{"threshold": 0}', ("slo.latency.threshold", "must be > 0, got 0")),
    wrong("slo", "steepness", "0", ("slo.steepness", "must be >= 0.001, got 0")),
    wrong("engine", "start_timeout", "-1", ("engine.start_timeout", "must be > 0, got -1")),
    # ranges
    parameter("a", '{"type": "float", "low": 0, "high": 1, "log": true}', ("parameters.a", "log needs low > 0, got low 0.0")),
    parameter("a", '{"type": "integer", "low": -5, "high": 1, "log": true}', ("parameters.a", "log needs low > 0, got low -5")),
    parameter("a", '{"type": "integer", "low": 5, "high": 1}', ("parameters.a", "low must not exceed high, got low 5 and high 1")),
    parameter("a", '{"type": "integer", "low": 1, "high": 5, "step": 0}', ("parameters.a.step", "must be >= 1, got 0")),
    parameter("a", '{"type": "integer", "low": 1.0, "high": 5}', ("parameters.a.low", "must be an integer, got 1.0")),
    parameter("a", '{"type": "float", "low": 0, "high": 1, "step": 1e-300}', ("parameters.a", "step is too small for the range, got 1e-300")),
    parameter("a", '{"type": "float", "low": 0, "high": 1e400}', ("parameters.a.high", "got Infinity")),
    # words
    wrong("benchmark", "traffic_scenarios", '["D(100)"]', ("benchmark.traffic_scenarios[0]", "scenario 'D(100)'")),
    wrong("benchmark", "traffic_scenarios", '["D(100,100)", "E(64)"]', ("benchmark.traffic_scenarios[1]", "embeddings are known to genai-bench, but not served here")),
    wrong("benchmark", "task", '"text-to-image"', ("benchmark.task", "must be 'text-to-text', got 'text-to-image'")),
    wrong("benchmark", "additional_params", '{"api_key": "s3cretpassw0rd"}', ("benchmark.additional_params", "api_key is a secret, which no file should hold")),
    wrong("benchmark", "additional_params", '{"a": [{"password": "hunter22"}]}', ("benchmark.additional_params", "password is a secret, which no file should hold")),
    wrong("benchmark", "additional_params", '{"stream": false}', ("benchmark.additional_params", "stream is set by the load generator")),
    wrong("", "runtime_image_tag", '"v1; rm"', ("runtime_image_tag", "got 'v1; rm'")),
    wrong("engine", "args", '{"--tp-size": 1}', ("engine.args.--tp-size", "without leading dashes")),
    wrong("engine", "env", '{"A=B": "c"}', ("engine.env.A=B", "must be the name of an environment variable")),
    parameter("a b", "[1]", ("parameters.a b", "must be an engine flag without leading dashes (letters, digits, - _ .), got 'a b'")),
    # what only the whole shows
    wrong("engine", "args", '{"tp-size": 2}', ("engine.args.tp-size", "is a parameter as well; it is either fixed or tuned")),
    Broken("stage of no parameter", '{"optimization": {"strategy": "hierarchical", "stages": [["tp_size"]]}}', [("optimization.stages[0][0]", "is not one of the parameters, got 'tp_size' (did you mean tp-size?)")]),
    Broken("constraint on no parameter", '{"constraints": [{"when": {"tp-siz": 1}, "require": {"zzz": 2}}]}', [("constraints[0].when.tp-siz", "is not one of the parameters (did you mean tp-size?)"), ("constraints[0].require.zzz", "is not one of the parameters (known here: tp-size, ")]),
    Broken("constraint that matches nothing", '{"constraints": [{"when": {"tp-size": []}, "require": {"tp-size": {}}}]}', [("constraints[0].when.tp-size", "must not be an empty list"), ("constraints[0].require.tp-size", "must have low or high, or both")]),
    Broken("constraint upside down", '{"constraints": [{"when": {"tp-size": {"low": 3, "high": 1}}, "require": {"tp-size": {"lo": 1}}}]}', [("constraints[0].when.tp-size", "low must not exceed high, got low 3.0 and high 1.0"), ("constraints[0].require.tp-size.lo", "is not a known key, got 1")]),
    Broken("constraint of a wrong type", '{"constraints": ["x", {"when": 3, "require": {"tp-size": [[1]]}}]}', [("constraints[0]", "must be an object, got 'x'"), ("constraints[1].when", "must be an object, got 3"), ("constraints[1].require.tp-size", "got [1]")]),
    Broken("constraints that leave nothing", '{"constraints": [{"when": {"tp-size": [1, 2]}, "require": {"schedule-policy": "dfs"}}]}', [("constraints", "leave no configuration at all")]),
    Broken("grid of a continuous range", '{"optimization": {"strategy": "grid"}, "parameters": {"a": {"type": "float", "low": 0, "high": 1}}}', [("optimization.strategy", "grid_search needs a step on every continuous parameter")]),
    Broken(
        "many at once",
        '{"optimization": {"stratgy": 1, "max_iterations": 0}, "benchmark": {"num_concurrency": []}, "parameters": {"a": [], "b": [NaN]}, "slo": {"tpot": {"threshold": -1}}}',
        [
            ("parameters.a", "must not be empty"),
            ("parameters.b[0]", "got NaN"),
            ("optimization.max_iterations", "got 0"),
            ("optimization.stratgy", "got 1 (did you mean strategy?)"),
            ("slo.tpot.threshold", "got -1"),
            ("benchmark.num_concurrency", "must not be empty, got []"),
        ],
    ),
    # no time per output token
    Broken("tpot of one token", '{"optimization": {"objective": ["minimize_ttft", "minimize_tpot"]}, "benchmark": {"traffic_scenarios": ["D(100,2)", "D(100,1)", "P(5,5)/1"]}}', [("benchmark.traffic_scenarios[1]", "D(100,1) answers with one token"), ("benchmark.traffic_scenarios[2]", "P(5,5)/1 answers with one token")]),
    Broken("a promise on tpot of one token", '{"slo": {"tpot": {"p95": {"threshold": 0.05}}}, "benchmark": {"traffic_scenarios": ["C(2)/(5,1)"]}}', [("benchmark.traffic_scenarios[0]", "C(2)/(5,1) answers with one token")]),
]
# fmt: on
