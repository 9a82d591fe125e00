"""Traffic scenarios: what is asked, in genai-bench's grammar and two forms of our own. Knows no texts.

Sizes are drawn as genai-bench draws them (genai_bench/scenarios/text.py): real numbers cut down to whole
ones, so that the maximum of a uniform scenario is not reached, with at least 1 input and 2 output tokens
wherever sizes are random.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

MAX_TOKENS = 1_000_000  # of one request's input or output; no engine serves more today
FORMS = (
    "D(in,out), N(mean_in,sd_in)/(mean_out,sd_out), U(min_in,max_in)/(min_out,max_out), U(max_in,max_out), "
    "P(prefix,suffix)/out, C(turns)/(in,out) or dataset"
)

_SERVED_ELSEWHERE = {
    "E": "embeddings",
    "R": "reranking",
    "I": "images",
    "A": "audio",
}
_SHAPE = re.compile(r"([A-Za-z]+)(?:\(([^()/]*)\)(?:/(?:\(([^()/]*)\)|([0-9]+)))?)?")
_TAKES = {
    "D": "one pair of numbers",
    "N": "two pairs of numbers",
    "U": "two pairs of numbers",
    "P": "a pair and a number",
    "C": "a number and a pair",
}
_MOST_TURNS = 1000


@dataclass(frozen=True)
class Deterministic:
    """`D(in,out)`: every request has the same size."""

    input_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        _check_tokens(self.input_tokens, self.output_tokens)

    def sample(self, rng: np.random.Generator) -> tuple[int, int]:
        """The one size there is."""
        return self.input_tokens, self.output_tokens

    @property
    def shortest_input(self) -> int:
        """The one length there is."""
        return self.input_tokens

    def __str__(self) -> str:
        return f"D({self.input_tokens},{self.output_tokens})"


@dataclass(frozen=True)
class Normal:
    """`N(mean_in,sd_in)/(mean_out,sd_out)`: normal sizes, cut off below at 1 input and 2 output tokens."""

    mean_input: int
    sd_input: int
    mean_output: int
    sd_output: int

    def __post_init__(self) -> None:
        _check_tokens(self.mean_input, self.mean_output)
        _check_tokens(self.sd_input, self.sd_output, least=0)

    def sample(self, rng: np.random.Generator) -> tuple[int, int]:
        """Two independent draws, cut down to whole tokens."""
        drawn_in, drawn_out = rng.normal((self.mean_input, self.mean_output), (self.sd_input, self.sd_output))
        return _clamp(int(drawn_in), 1), _clamp(int(drawn_out), 2)

    @property
    def shortest_input(self) -> int:
        """Three standard deviations below the mean; one draw in 740 is shorter."""
        return max(1, self.mean_input - 3 * self.sd_input)

    def __str__(self) -> str:
        return f"N({self.mean_input},{self.sd_input})/({self.mean_output},{self.sd_output})"


@dataclass(frozen=True)
class Uniform:
    """`U(min_in,max_in)/(min_out,max_out)`: uniform sizes from the minimum to just below the maximum."""

    min_input: int
    max_input: int
    min_output: int
    max_output: int

    def __post_init__(self) -> None:
        _check_tokens(self.min_input, self.max_input, self.min_output, self.max_output)
        for low, high in ((self.min_input, self.max_input), (self.min_output, self.max_output)):
            if low > high:
                raise ValueError(f"the minimum {low} is above the maximum {high}")

    def sample(self, rng: np.random.Generator) -> tuple[int, int]:
        """Two independent draws, cut down to whole tokens."""
        drawn_in, drawn_out = rng.uniform(
            (self.min_input, self.min_output), (self.max_input, self.max_output)
        )
        return _clamp(int(drawn_in), 1), _clamp(int(drawn_out), 2)

    @property
    def shortest_input(self) -> int:
        """The minimum."""
        return self.min_input

    def __str__(self) -> str:
        if self.min_input == self.min_output == 1:
            return f"U({self.max_input},{self.max_output})"
        return f"U({self.min_input},{self.max_input})/({self.min_output},{self.max_output})"


@dataclass(frozen=True)
class SharedPrefix:
    """`P(prefix,suffix)/out`: all requests begin with the same tokens and end with their own."""

    prefix_tokens: int
    suffix_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        _check_tokens(self.prefix_tokens + self.suffix_tokens, self.suffix_tokens, self.output_tokens)
        _check_tokens(self.prefix_tokens, least=0)

    def sample(self, rng: np.random.Generator) -> tuple[int, int]:
        """The one size there is."""
        return self.prefix_tokens + self.suffix_tokens, self.output_tokens

    def __str__(self) -> str:
        return f"P({self.prefix_tokens},{self.suffix_tokens})/{self.output_tokens}"


@dataclass(frozen=True)
class Conversation:
    """`C(turns)/(in,out)`: each turn sends all of its conversation so far, and as many tokens more."""

    turns: int
    input_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if not 1 <= self.turns <= _MOST_TURNS:
            raise ValueError(f"{self.turns} is not between 1 and {_MOST_TURNS} turns")
        _check_tokens(self.input_tokens, self.output_tokens)
        _check_tokens(self.turns * (self.input_tokens + self.output_tokens))

    def __str__(self) -> str:
        return f"C({self.turns})/({self.input_tokens},{self.output_tokens})"


@dataclass(frozen=True)
class Dataset:
    """`dataset`: requests from a file."""

    def __str__(self) -> str:
        return "dataset"


Sized = Deterministic | Normal | Uniform
Scenario = Sized | SharedPrefix | Conversation | Dataset


def parse_scenario(text: str) -> Scenario:
    """`D(100,100)`, `N(480,240)/(300,150)`, `P(2000,500)/200`, `dataset` and so on; ValueError otherwise.

    White space is ignored; `U(max_in,max_out)` counts from 1. The error's message names what is wrong
    and the forms that are right.
    """
    try:
        return _parse(text)
    except ValueError as wrong:
        raise ValueError(f"scenario {text[:80]!r}: {wrong}; use {FORMS}") from None


def _parse(text: str) -> Scenario:
    text = "".join(text.split())
    kind = text.partition("(")[0]
    if kind in _SERVED_ELSEWHERE:
        raise ValueError(f"{_SERVED_ELSEWHERE[kind]} are known to genai-bench, but not served here")
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise ValueError("not of the form X(a,b) or X(a,b)/(c,d)")
    kind, first, second, alone = match.groups()
    if kind == "dataset" and first is None:
        return Dataset()
    if kind not in _TAKES:
        raise ValueError(f"no scenario is called {kind!r}")
    if first is None:
        raise ValueError(f"{kind} lacks its numbers")
    match kind, second, alone:
        case "C", str(), None:
            return Conversation(_whole(first), *_pair(second))
        case "P", None, str():
            return SharedPrefix(*_pair(first), _whole(alone))
    if alone is not None or kind in "CP":
        raise ValueError(f"{kind} takes {_TAKES[kind]}")
    return _of_pairs(kind, [_pair(part) for part in (first, second) if part is not None])


def _of_pairs(kind: str, pairs: list[tuple[int, int]]) -> Sized:
    match kind, pairs:
        case "D", [(size_in, size_out)]:
            return Deterministic(size_in, size_out)
        case "N", [(mean_in, sd_in), (mean_out, sd_out)]:
            return Normal(mean_in, sd_in, mean_out, sd_out)
        case "U", [(max_in, max_out)]:
            return Uniform(1, max_in, 1, max_out)
        case "U", [(min_in, max_in), (min_out, max_out)]:
            return Uniform(min_in, max_in, min_out, max_out)
    raise ValueError(f"{kind} takes {_TAKES[kind]}")


def _pair(text: str) -> tuple[int, int]:
    """Two whole numbers from `a,b`."""
    numbers = text.split(",")
    if len(numbers) != 2:
        raise ValueError(f"({text[:40]}) is not a pair of numbers")
    first, second = (_whole(number) for number in numbers)
    return first, second


def _whole(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,12}", text) is None:
        raise ValueError(f"{text[:40]!r} is not a whole number of tokens")
    return int(text)


def _check_tokens(*counts: int, least: int = 1) -> None:
    for count in counts:
        if not least <= count <= MAX_TOKENS:
            raise ValueError(f"{count} is not between {least} and {MAX_TOKENS} tokens")


def _clamp(tokens: int, least: int) -> int:
    return min(max(tokens, least), MAX_TOKENS)
