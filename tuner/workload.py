"""Traffic: scenarios in genai-bench's grammar, load levels, and the prompts they ask for.

Knows nothing of HTTP or of engines. Everything is seeded: two trials of a study see the same requests.
Sizes are drawn as genai-bench draws them (genai_bench/scenarios/text.py): real numbers cut down to whole
ones, so that the maximum of a uniform scenario is not reached, with at least 1 input and 2 output tokens
wherever sizes are random.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, overload

import numpy as np

from tuner.vocabulary import WORDS

MAX_TOKENS = 1_000_000  # of one request's input or output; no engine serves more today
FORMS = (
    "D(in,out), N(mean_in,sd_in)/(mean_out,sd_out), U(min_in,max_in)/(min_out,max_out) or U(max_in,max_out)"
)

_SERVED_ELSEWHERE = {
    "E": "embeddings",
    "R": "reranking",
    "I": "images",
    "A": "audio",
    "P": "shared prefixes",
    "dataset": "requests from a data set",
}
_SHAPE = re.compile(r"([A-Za-z]+)(?:\(([^()/]*)\)(?:/\(([^()/]*)\))?)?")


class Scenario(Protocol):
    """A distribution of request sizes."""

    def sample(self, rng: np.random.Generator) -> tuple[int, int]:
        """(input tokens, output tokens) of one request."""
        ...

    def __str__(self) -> str:
        """The scenario in the grammar that `parse_scenario` reads."""
        ...


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

    def __str__(self) -> str:
        if self.min_input == self.min_output == 1:
            return f"U({self.max_input},{self.max_output})"
        return f"U({self.min_input},{self.max_input})/({self.min_output},{self.max_output})"


def parse_scenario(text: str) -> Scenario:
    """`D(100,100)`, `N(480,240)/(300,150)`, `U(50,100)/(200,250)` or `U(100,200)`; ValueError otherwise.

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
    kind, first, second = match.groups()
    if kind not in ("D", "N", "U"):
        raise ValueError(f"no scenario is called {kind!r}")
    if first is None:
        raise ValueError(f"{kind} lacks its numbers")
    pairs = [_pair(part) for part in (first, second) if part is not None]
    match kind, pairs:
        case "D", [(size_in, size_out)]:
            return Deterministic(size_in, size_out)
        case "N", [(mean_in, sd_in), (mean_out, sd_out)]:
            return Normal(mean_in, sd_in, mean_out, sd_out)
        case "U", [(max_in, max_out)]:
            return Uniform(1, max_in, 1, max_out)
        case "U", [(min_in, max_in), (min_out, max_out)]:
            return Uniform(min_in, max_in, min_out, max_out)
    raise ValueError(f"{kind} takes {'one pair' if kind == 'D' else 'two pairs'} of numbers")


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


Arrivals = Literal["poisson", "constant"]


@dataclass(frozen=True)
class LoadLevel:
    """One step of a trial: a scenario at a concurrency or at a rate, bounded by requests and by time.

    With a `request_rate` (requests/s) the loop is open: requests are due by `arrivals`, whatever became of
    those before, and `concurrency` is only the most that may be open at once.
    """

    scenario: Scenario
    concurrency: int
    max_requests: int
    max_time_s: float
    warmup_requests: int
    seed: int
    request_rate: float | None = None
    arrivals: Arrivals = "poisson"

    @property
    def load(self) -> str:
        """The load alone: `8` at a time, or `2.5/s`."""
        return str(self.concurrency) if self.request_rate is None else f"{self.request_rate:g}/s"

    @property
    def random_key(self) -> tuple[int, ...]:
        """What all random numbers of the level start from: seed, scenario, and concurrency or rate."""
        load = self.concurrency if self.request_rate is None else zlib.crc32(self.load.encode())
        return self.seed % 2**64, zlib.crc32(str(self.scenario).encode()), load

    def __str__(self) -> str:
        """`D(100,100) at 8`, `D(100,100) at 2.5/s`."""
        return f"{self.scenario} at {self.load}"


def arrivals(level: LoadLevel) -> Iterator[float]:
    """Seconds from the first request to each, without end: equal gaps, or exponential ones (Poisson).

    The level's warm-up requests come first. The same for the same seed; ValueError for a closed loop.
    """
    if level.request_rate is None:
        raise ValueError("a closed loop has no arrivals")
    due_s, rng = 0.0, np.random.default_rng((*level.random_key, zlib.crc32(b"arrivals")))
    while True:
        yield due_s
        gap = 1.0 if level.arrivals == "constant" else float(rng.exponential())
        due_s += gap / level.request_rate


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to send: `text` is about `input_tokens` tokens long, `output_tokens` are asked for."""

    text: str
    input_tokens: int
    output_tokens: int


class Prompts(Sequence[Prompt]):
    """The prompts of one level, made when they are asked for: a level of any size costs no memory.

    A prompt depends on the level's seed, scenario and load and on its own index, on nothing else.
    No two begin alike: the first words spell the index, counted from a place that differs by level, so that
    neither prompts nor levels find each other in a prefix cache. (Prompts of one or two words repeat
    after 241 or 58,081 of them: there are no more.)
    """

    def __init__(self, level: LoadLevel) -> None:
        self._level = level
        self._key = level.random_key
        self._origin = int(np.random.default_rng(self._key).integers(_SPELLED))

    def __len__(self) -> int:
        return self._level.warmup_requests + self._level.max_requests

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(len(self)))]
        return self._make(range(len(self))[index])

    def _make(self, index: int) -> Prompt:
        rng = np.random.default_rng((*self._key, index))
        input_tokens, output_tokens = self._level.scenario.sample(rng)
        words = rng.integers(len(WORDS), size=max(input_tokens, 3), dtype=np.int16)
        place = (self._origin + index) % _SPELLED
        words[:3] = (place % len(WORDS), place // len(WORDS) % len(WORDS), place // len(WORDS) ** 2)
        text = _PADDED[words[:input_tokens]].tobytes().decode("ascii").lstrip()
        return Prompt(text, input_tokens, output_tokens)


_SPELLED = len(WORDS) ** 3  # indices that three words can spell: 14 million
_PADDED = np.array([f" {word}" for word in WORDS], dtype="S5")


def prompts(level: LoadLevel) -> Sequence[Prompt]:
    """The level's warm-up prompts followed by its measured prompts, the same for the same seed."""
    return Prompts(level)
