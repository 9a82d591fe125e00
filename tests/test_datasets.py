"""Requests from files, and prompts of exact lengths where the model's tokenizer is there."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contracts.load_contract import level, put
from contracts.scripted_server import ScriptedServer, streaming
from hypothesis import example, given
from hypothesis import strategies as st

from tuner.datasets import Row, read_dataset
from tuner.errors import TaskError
from tuner.load.client import NativeClient
from tuner.prompts import prompts
from tuner.scenarios import Dataset
from tuner.task import load_task, make_task
from tuner.vocabulary import USUAL, WORDS, Vocabulary, vocabulary_of


def written(folder: Path, *entries: Any, name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n\n")
    return str(path)


def talk(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": said} for who, said in turns]}


def test_json_lines(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "Hello you", "max_tokens": 7}, {"prompt": "x", "id": 3})
    assert read_dataset(path) == (Row("Hello you", 3, 7), Row("x", 1, 128))


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\r"])
def test_a_line_ends_where_json_lines_end_and_nowhere_else(tmp_path: Path, character: str) -> None:
    path = tmp_path / "data.jsonl"
    entry = json.dumps({"prompt": f"a{character}b", "max_tokens": 5}, ensure_ascii=False)
    path.write_bytes(f"{entry}\r\n{entry}\n".encode())
    assert [row.prompt for row in read_dataset(str(path))] == [f"a{character}b"] * 2


def test_conversations_in_either_spelling_give_their_first_exchange(tmp_path: Path) -> None:
    question, answer = "what is it", "a" * 40
    sharegpt = talk(("system", "be kind"), ("human", question), ("gpt", answer), ("human", "more"))
    openai = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    left_out = [talk(("gpt", "hi"), ("human", "no")), talk(("human", "alone")), talk()]
    expected = (Row(question, 3, 10),) * 2
    assert read_dataset(written(tmp_path, sharegpt, openai, *left_out)) == expected
    array = tmp_path / "array.json"
    array.write_text(json.dumps([sharegpt, openai, *left_out]))
    assert read_dataset(str(array)) == expected


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("", "holds no request"),
        ("{\n", "line 1 is not JSON"),
        ("[1,", "is not JSON"),
        ("[1]", "entry 0 is not an object"),
        ('{"prompt": "a"}\n{"prompt": ""}', "line 2 has no prompt"),
        ('{"text": "a"}', "line 1 has no prompt"),
        ('{"prompt": "a", "max_tokens": 0}', "line 1: max_tokens must be"),
        ('{"prompt": "a", "max_tokens": true}', "line 1: max_tokens must be"),
        ('{"prompt": "\\ud800"}', "line 1 has half a surrogate pair"),
    ],
)
def test_what_is_no_data_set_says_where(tmp_path: Path, content: str, wrong: str) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=wrong):
        read_dataset(str(path))


def test_the_rows_are_sent_in_a_seeded_order_again_and_again(tmp_path: Path) -> None:
    path = written(tmp_path, *({"prompt": f"row {i}", "max_tokens": i + 2} for i in range(9)))
    load = replace(level(max_requests=18), scenario=Dataset(), dataset=path)
    sent = list(prompts(load))
    assert {prompt.text for prompt in sent[:9]} == {f"row {i}" for i in range(9)}
    assert sent[:9] == sent[9:] == list(prompts(load))[:9]
    assert sent != list(prompts(replace(load, seed=2)))
    with ScriptedServer(streaming()) as server:
        result = put(NativeClient(), server.url, load)
    assert {call.body["prompt"] for call in server.calls} == {f"row {i}" for i in range(9)}
    assert [r.error for r in result.records] == [None] * 18


def test_a_task_file_names_its_data_set_relative_to_itself(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "a"})
    task_path = tmp_path / "task.json"
    load = {"dataset": "data.jsonl", "traffic_scenarios": ["dataset"], "num_concurrency": [2]}
    task_path.write_text(json.dumps({"benchmark": load}))
    [found] = load_task(task_path).levels(0)
    assert (found.dataset, str(found)) == (path, "dataset at 2")


@pytest.mark.parametrize(
    ("load", "problem"),
    [
        ({"traffic_scenarios": ["dataset"]}, r"benchmark\.dataset: goes with the scenario"),
        ({"dataset": "/nosuch"}, r"benchmark\.dataset: goes with the scenario"),
        ({"dataset": "/nosuch", "traffic_scenarios": ["dataset"]}, r"/nosuch: cannot be read: No such file"),
    ],
)
def test_a_data_set_that_is_not_there_is_a_problem_of_the_task(load: dict[str, Any], problem: str) -> None:
    with pytest.raises(TaskError, match=problem):
        make_task({"benchmark": load})


# Exact lengths.


class OddTokenizer:
    """Puts one token before a text, has one for a word, and two for a word with an `e` in it."""

    @staticmethod
    def from_file(_path: str) -> OddTokenizer:
        return OddTokenizer()

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        ids = [word for word in text.split() for _ in range(1 + ("e" in word))]
        return SimpleNamespace(ids=["<s>"] * add_special_tokens + ids)


@pytest.fixture
def odd_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model's folder whose tokenizer is the odd one."""
    monkeypatch.setitem(sys.modules, "tokenizers", SimpleNamespace(Tokenizer=OddTokenizer))
    (tmp_path / "tokenizer.json").write_text("{}")
    return str(tmp_path)


def test_prompts_are_made_of_words_of_one_token_and_count_what_comes_before(odd_model: str) -> None:
    words = vocabulary_of(odd_model)
    assert words == Vocabulary(tuple(w for w in WORDS if "e" not in w), special_tokens=1, exact=True)
    task = make_task({"model": {"id_or_path": odd_model}, "base_runtime": "sglang"})
    [load, _] = task.levels(0)
    for prompt in prompts(load)[:20]:
        assert len(OddTokenizer().encode(prompt.text, add_special_tokens=True).ids) == 100


def test_without_a_tokenizer_the_usual_words_stand_for_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vocabulary_of("meta-llama/Llama-3.1-8B-Instruct") is USUAL
    assert vocabulary_of(str(tmp_path)) is USUAL
    (tmp_path / "tokenizer.json").write_text("rubbish")
    assert vocabulary_of(str(tmp_path / "tokenizer.json")) is USUAL


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2_000_000) | st.text(st.characters(), max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["prompt", "max_tokens", "conversations", "messages", "from", "role", "value", "content"]
            ),
            inner | st.sampled_from(["human", "user", "gpt", "assistant"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    content=st.binary(max_size=60)
    | ANY.map(json.dumps).map(str.encode)
    | st.lists(ANY.map(json.dumps), max_size=3).map("\n".join).map(str.encode)
)
@example(content=b"[" * 100_000)
@example(
    content=b'{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "x"}]}'
)
def test_any_file_is_requests_or_a_value_error(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_bytes(content)
    try:
        rows = read_dataset(str(path))
    except ValueError as wrong:
        assert str(wrong)
        return
    for row in rows:
        assert row.prompt.encode() and row.input_tokens >= 1 and row.output_tokens >= 1
