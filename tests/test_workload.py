"""Scenarios and prompts: genai-bench's grammar and semantics, seeded and distinct."""

from __future__ import annotations

import tracemalloc
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.errors import TaskError
from tuner.prompts import prompts
from tuner.scenarios import (
    MAX_TOKENS,
    Conversation,
    Dataset,
    Deterministic,
    Normal,
    Scenario,
    SharedPrefix,
    Uniform,
    parse_scenario,
)
from tuner.task import make_task
from tuner.vocabulary import WORDS
from tuner.workload import LoadLevel

TOKENS = st.integers(1, MAX_TOKENS)
PAIRS = st.tuples(TOKENS, TOKENS).map(sorted)
SCENARIOS = st.one_of(
    st.builds(Deterministic, TOKENS, TOKENS),
    st.builds(Normal, TOKENS, st.integers(0, MAX_TOKENS), TOKENS, st.integers(0, MAX_TOKENS)),
    st.builds(lambda i, o: Uniform(*i, *o), PAIRS, PAIRS),
)
OTHERS = st.one_of(
    st.builds(SharedPrefix, st.integers(0, 10**5), st.integers(1, 10**5), TOKENS),
    st.builds(Conversation, st.integers(1, 9), st.integers(1, 10**4), st.integers(1, 10**4)),
    st.just(Dataset()),
)


def a_level(scenario: str = "D(20,5)", **changes: Any) -> LoadLevel:
    """A load level of 50 requests after 10 of warm-up."""
    return replace(LoadLevel(parse_scenario(scenario), 4, 50, 30.0, 10, 7), **changes)


@pytest.mark.parametrize(
    ("text", "scenario"),
    [
        ("D(100,200)", Deterministic(100, 200)),
        ("N(480,240)/(300,150)", Normal(480, 240, 300, 150)),
        ("U(50,100)/(200,250)", Uniform(50, 100, 200, 250)),
        ("U(100,200)", Uniform(1, 100, 1, 200)),
        ("P(2000,500)/200", SharedPrefix(2000, 500, 200)),
        ("C(4)/(50,20)", Conversation(4, 50, 20)),
        ("dataset", Dataset()),
        (" N ( 480 , 0 )\t/ (300, 150)\n", Normal(480, 0, 300, 150)),
    ],
)
def test_accepted_forms(text: str, scenario: Scenario) -> None:
    assert parse_scenario(text) == scenario


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "not of the form"),
        ("D(100,100", "not of the form"),
        ("D", "lacks its numbers"),
        ("D(100)", "not a pair"),
        ("D(1,2,3)", "not a pair"),
        ("D(1.5,2)", "'1.5' is not a whole number"),
        ("D(-1,2)", "'-1' is not a whole number"),
        ("D(٣,2)", "not a whole number"),
        ("D(0,2)", "0 is not between 1 and"),
        ("D(1,9999999)", "9999999 is not between 1 and"),
        (f"D(1,{'9' * 5000})", "not a whole number"),
        ("D(1,2)/(3,4)", "D takes one pair"),
        ("N(1,2)", "N takes two pairs"),
        ("U(9,3)/(1,2)", "the minimum 9 is above the maximum 3"),
        ("X(1,2)", "no scenario is called 'X'"),
        ("d(1,2)", "no scenario is called 'd'"),
        ("E(1024)", "not served here"),
        ("R(1024,100)", "not served here"),
        ("I(512,512)", "not served here"),
        ("A(10,20)", "not served here"),
        ("P(2000,500)", "P takes a pair and a number"),
        ("P(2000)/200", "not a pair"),
        ("P(2000,0)/200", "0 is not between 1 and"),
        ("C(4,2)", "C takes a number and a pair"),
        ("C(0)/(10,20)", "0 is not between 1 and 1000 turns"),
        ("C(4)/20", "C takes a number and a pair"),
        ("D(1,2)/3", "D takes one pair"),
        ("dataset(1,2)", "no scenario is called 'dataset'"),
    ],
)
def test_refused_forms_say_what_is_wrong_and_what_is_right(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match="use D") as refused:
        parse_scenario(text)
    assert wrong in str(refused.value)
    assert len(str(refused.value)) < 400


@given(st.text() | st.from_regex(r"[DNUPC]\(\d{0,8},\d{0,8}\)(/\(\d{0,8},\d{0,8}\))?", fullmatch=True))
def test_any_text_is_a_scenario_or_a_value_error(text: str) -> None:
    try:
        scenario = parse_scenario(text)
    except ValueError:
        return
    assert parse_scenario(str(scenario)) == scenario


@given(SCENARIOS | OTHERS)
def test_scenarios_survive_being_written(scenario: Scenario) -> None:
    assert parse_scenario(str(scenario)) == scenario


@given(SCENARIOS, st.integers(0, 2**32))
def test_samples_are_within_bounds(scenario: Scenario, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for tokens_in, tokens_out in (scenario.sample(rng) for _ in range(20)):
        assert 1 <= tokens_in <= MAX_TOKENS
        assert 1 <= tokens_out <= MAX_TOKENS
        if not isinstance(scenario, Deterministic):
            assert tokens_out >= 2


def test_uniform_stops_short_of_its_maximum() -> None:
    rng = np.random.default_rng(0)
    drawn = [parse_scenario("U(3,6)/(10,12)").sample(rng) for _ in range(500)]
    assert {i for i, _ in drawn} == {3, 4, 5}
    assert {o for _, o in drawn} == {10, 11}


def test_normal_has_the_mean_and_deviation_it_names() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([parse_scenario("N(480,50)/(300,20)").sample(rng) for _ in range(4000)])
    assert drawn.mean(axis=0) == pytest.approx([479.5, 299.5], abs=3)
    assert drawn.std(axis=0) == pytest.approx([50, 20], rel=0.1)


def test_scenarios_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        parse_scenario("D(1,2)").input_tokens = 3  # type: ignore[attr-defined]


# Prompts.


def test_a_word_is_a_token() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert {len(word) for word in WORDS} == {4}
    for prompt in prompts(a_level("U(1,300)/(1,9)")):
        assert len(prompt.text.split()) == prompt.input_tokens
        assert set(prompt.text.split()) <= set(WORDS)


def test_same_level_same_prompts() -> None:
    level = a_level("N(50,20)/(20,9)")
    assert list(prompts(level)) == list(prompts(level))
    assert prompts(level)[3] == list(prompts(level))[3]
    assert prompts(level)[-1] == list(prompts(level))[-1]
    assert prompts(level)[2:5] == list(prompts(level))[2:5]
    with pytest.raises(IndexError):
        prompts(level)[60]


@pytest.mark.parametrize("change", [{"seed": 8}, {"concurrency": 5}, {"seed": -1}])
def test_another_level_has_other_prompts(change: dict[str, Any]) -> None:
    ours, theirs = ({p.text for p in prompts(level)} for level in (a_level(), a_level(**change)))
    assert not ours & theirs


def test_no_two_prompts_begin_alike() -> None:
    level = a_level("D(50,5)", max_requests=5000, warmup_requests=100)
    beginnings = [tuple(prompt.text.split()[:3]) for prompt in prompts(level)]
    assert len(set(beginnings)) == 5100
    assert len({first for first, *_ in beginnings[:200]}) == 200


def test_short_prompts_differ_as_far_as_they_can() -> None:
    assert len({prompt.text for prompt in prompts(a_level("D(1,5)", max_requests=200))}) == 210
    assert len({prompt.text for prompt in prompts(a_level("D(2,5)", max_requests=2000))}) == 2010


def test_a_shared_prefix_is_the_same_at_every_load_and_what_follows_is_not() -> None:
    level = a_level("P(40,10)/5")
    for load in (level, replace(level, concurrency=9), replace(level, request_rate=2.5)):
        texts = [prompt.text.split() for prompt in prompts(load)]
        assert {len(words) for words in texts} == {50}
        assert {tuple(words[:40]) for words in texts} == {tuple(prompts(level)[0].text.split()[:40])}
        assert len({tuple(words[40:43]) for words in texts}) == len(texts)
    other = prompts(replace(level, seed=8))[0].text.split()
    assert other[:40] != prompts(level)[0].text.split()[:40]


@pytest.mark.parametrize(
    ("scenario", "share"),
    [
        ("D(50,5)", {"prefix_len": 40}),
        ("D(50,5)", {"prefix_ratio": 0.8}),
        ("N(90,10)/(9,2)", {"prefix_len": 40}),
        ("U(41,90)/(2,9)", {"prefix_len": 40}),
    ],
)
def test_genai_benchs_options_let_all_prompts_begin_alike(scenario: str, share: dict[str, float]) -> None:
    load = {"traffic_scenarios": [scenario], "num_concurrency": [4, 8], "max_requests_per_iteration": 300}
    plain, shared = (make_task({"benchmark": {**load, **more}}).levels(3) for more in ({}, share))
    beginnings, ends = set(), set()
    for alone, level in zip(plain, shared, strict=True):
        for other, prompt in zip(prompts(alone), prompts(level), strict=True):
            assert prompt.input_tokens == max(other.input_tokens, 40) == len(prompt.text.split())
            assert prompt.output_tokens == other.output_tokens
            words = prompt.text.split()
            beginnings.add(tuple(words[:40]))
            ends.add(tuple(words[40:43]))
    assert len(beginnings) == 1
    assert len(ends) > 600


@pytest.mark.parametrize(
    ("load", "problem"),
    [
        ({"prefix_len": 5, "prefix_ratio": 0.5}, "leave one of them out"),
        ({"prefix_len": 101}, r"longer than prompts of D\(100,100\) may be \(100 tokens\)"),
        ({"prefix_len": 21, "traffic_scenarios": ["N(50,10)/(9,1)"]}, r"may be \(20 tokens\)"),
        ({"prefix_len": 31, "traffic_scenarios": ["U(30,60)/(9,19)"]}, r"may be \(30 tokens\)"),
        ({"prefix_len": 1, "traffic_scenarios": ["C(2)/(9,9)"]}, r"not with C\(2\)"),
        ({"prefix_ratio": 0.5, "traffic_scenarios": ["U(30,60)/(9,19)"]}, "use prefix_len"),
        ({"prefix_ratio": 1.5}, "prefix_ratio"),
    ],
)
def test_a_prefix_that_does_not_fit_is_refused(load: dict[str, Any], problem: str) -> None:
    with pytest.raises(TaskError, match=problem):
        make_task({"benchmark": load})


def test_a_turn_begins_with_the_turns_before_it() -> None:
    level = a_level("C(3)/(10,4)", concurrency=2, warmup_requests=0, max_requests=12)
    made = prompts(level)
    assert [prompt.input_tokens for prompt in made] == [10, 10, 24, 24, 38, 38] * 2
    assert {prompt.output_tokens for prompt in made} == {4}
    for first, later in ((0, 2), (2, 4), (1, 3), (3, 5), (6, 8)):
        assert made[later].text.startswith(made[first].text + " ")
    assert len({prompt.text[:15] for prompt in made}) == 4  # conversations


def test_conversations_at_a_rate_come_back_after_ten_seconds() -> None:
    level = a_level("C(2)/(10,4)", request_rate=0.3, warmup_requests=0)
    made = prompts(level)
    assert made[3].text.startswith(made[0].text + " ")
    assert not made[2].text.startswith(made[0].text[:15])


def test_prompts_take_no_memory_until_they_are_made() -> None:
    tracemalloc.start()
    many = prompts(a_level("D(100000,5)", max_requests=10**6))
    assert many[10**6].input_tokens == 100_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(many) == 10**6 + 10
    assert peak < 20e6
