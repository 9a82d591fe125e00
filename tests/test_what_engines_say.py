"""Whatever an engine writes or answers is a failure, a fact or nothing, never an exception of ours."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from contracts.scripted_server import Call, ScriptedServer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tuner.engines import make_engine, sglang, vllm
from tuner.engines.base import ServerInfo
from tuner.engines.flags import installed_flags
from tuner.engines.llamacpp import adapter as llamacpp
from tuner.engines.server import call, diagnose
from tuner.engines.simulator.flags import parse_args
from tuner.engines.simulator.gpus import GPUS
from tuner.engines.simulator.memory import StartFailure, make_plan
from tuner.engines.simulator.models import ModelNotFound, find_model
from tuner.failures import Cause, Stage, TrialFailed
from tuner.secrets import plain
from tuner.task import make_task

LOGS = sorted((Path(__file__).parent / "data" / "logs").glob("*.log"))
TABLES = {"sglang": sglang.SIGNS, "vllm": vllm.SIGNS, "llamacpp": llamacpp.SIGNS}
KEYS = st.sampled_from(
    [
        *(
            "version",
            "max_total_num_tokens",
            "internal_states",
            "vllm_config",
            "cache_config",
            "model_config",
        ),
        *("kv-cache-size-tokens", "api_key", "total_slots", "default_generation_settings", "n_ctx", "x"),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=15,
)
SAYINGS = st.dictionaries(KEYS, JSON, max_size=6)

# --- logs -----------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(TABLES)), st.binary(max_size=300), st.none() | st.integers(-64, 255))
def test_any_log_is_a_failure(engine: str, log: bytes, code: int | None) -> None:
    failure = diagnose(Stage.START, code, log.decode(errors="replace"), TABLES[engine])
    assert failure.cause in Cause and failure.detail
    shown = plain(failure.detail + failure.evidence, {})
    assert all(character.isprintable() or character in "\t\n" for character in shown if ord(character) < 160)


@pytest.mark.parametrize("engine", TABLES)
@pytest.mark.parametrize("log", LOGS, ids=lambda path: path.stem)
def test_no_line_makes_a_pattern_search_for_ever(engine: str, log: Path) -> None:
    """What a pattern knows, again and again in one line: where that is quadratic, it takes minutes."""
    size = 256 * 1024
    for line in set(log.read_text().splitlines()[-20:]):
        for end in (10, 25, len(line)):
            text = (line[:end] + " ") * (size // (end + 1))
            failure = diagnose(Stage.START, 1, text, TABLES[engine])
            assert len(failure.evidence) < size


@pytest.mark.parametrize(
    "text", ["World size " * 30_000, "non-default args: {" * 20_000, "(" * 100_000, "a." * 99_999]
)
def test_a_hostile_line_of_vllm(text: str) -> None:
    diagnose(Stage.START, 1, text, vllm.SIGNS)
    assert vllm._given(text) == {} and vllm._kv_tokens({}, text) is None


@given(
    st.lists(
        st.sampled_from([*"{}[]()'\":,-+0j", "1: ", "'a': ", "api_key", "...", "b''", "\\"]), max_size=30
    )
)
@example(["{", "'a': ", *["-"] * 5000, "1", "}"])
@example(["{", *["["] * 5000])
@example(["{[]: 1}"])
@example(["{1: 2}"])
def test_any_arguments_in_a_log_of_vllm_are_arguments_or_none(words: list[str]) -> None:
    assert isinstance(vllm._given(f"INFO non-default args: {''.join(words)}\n"), dict)


# --- answers --------------------------------------------------------------------------------------------


def sound(info: ServerInfo) -> bool:
    return isinstance(info.version, str) and (info.kv_tokens is None or info.kv_tokens > 0)


@given(SAYINGS)
def test_whatever_a_server_says_of_itself_is_read(said: dict[str, Any]) -> None:
    assert sound(sglang.server_info(said))
    args = vllm._resolved({"vllm_config": said})
    json.dumps(args)
    tokens = vllm._kv_tokens(args, "")
    assert tokens is None or tokens > 0


@given(st.dictionaries(KEYS, JSON, max_size=6) | JSON)
@settings(max_examples=30)
def test_whatever_llamacpp_says_of_its_slots_is_read(said: Any) -> None:
    task = make_task({"base_runtime": "llamacpp", "model": {"id_or_path": "m.gguf"}})
    engine = cast("llamacpp.LlamaCppEngine", make_engine(task))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llamacpp, "call", lambda *_, **__: said)
        info = engine._info(["--model", "m.gguf"], "http://127.0.0.1:1")
    assert isinstance(info.effective_args["parallel"], int)


ANSWERS = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nothing": b"",
    "torn": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    "an error": b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
    "a bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a long line": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_no_answer_is_an_os_error(answer: str) -> None:
    async def script(asked: Call) -> None:
        await asked.send(ANSWERS[answer])

    with ScriptedServer(script) as server, pytest.raises(OSError):
        call(f"{server.url}/v1/models")


def test_an_answer_that_is_nested_too_deep_is_text() -> None:
    body = b"[" * 200_000

    async def script(asked: Call) -> None:
        await asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    with ScriptedServer(script) as server:
        assert call(server.url) == body.decode()


def test_an_answer_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.engines.server._MOST_BYTES", 10_000)

    async def script(asked: Call) -> None:
        await asked.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 20_000)

    with ScriptedServer(script) as server, pytest.raises(OSError, match="more than 10,000 bytes"):
        call(server.url)


# --- flags, and a model's sizes ---------------------------------------------------------------------------

ROWS = st.fixed_dictionaries(
    {},
    optional={
        "names": JSON | st.just(["--a"]),
        "takes_value": st.booleans(),
        "needs_value": st.booleans(),
        "kind": JSON,
        "choices": JSON | st.just(["x"]),
        "default_on": JSON,
    },
)


@given(said=st.binary(max_size=30) | (st.lists(ROWS, max_size=3) | JSON).map(json.dumps).map(str.encode))
@settings(max_examples=15)
def test_whatever_a_parser_tells_is_flags_or_nothing(
    said: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("flags")
    (folder / "said").write_bytes(said)
    found = installed_flags(
        ["cat", str(folder / "said")], env={"PATH": "/usr/bin:/bin"}, key=["k"], folder=folder
    )
    if found is not None:
        for value in (None, True, False, 1, "x"):
            with suppress(TrialFailed):
                found.check({"a": value})


SIZES = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
MORE = [
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "num_experts",
    "num_experts_per_tok",
    "tie_word_embeddings",
]
NUMBERS = st.integers(-2, 5000) | st.sampled_from([None, "8", 1e300, [], True, 10**30, 0.5])


@given(
    config=st.fixed_dictionaries(dict.fromkeys(SIZES, NUMBERS), optional=dict.fromkeys(MORE, NUMBERS)) | JSON
)
def test_any_config_is_a_model_or_none(config: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(config))
    try:
        model = find_model(str(folder))
    except ModelNotFound:
        return
    try:
        plan = make_plan(parse_args(["--model-path", str(folder)]), model, GPUS["h100"])
    except StartFailure:
        return
    assert plan.kv_tokens > 0


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff", b'"x"', b"{}"])
def test_what_is_no_config_is_no_model(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelNotFound):
        find_model(str(tmp_path))
