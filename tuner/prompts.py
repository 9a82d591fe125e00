"""The texts that a load level sends. Knows nothing of HTTP or of engines; the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import overload

import numpy as np

from tuner.datasets import read_dataset
from tuner.scenarios import Conversation, Dataset, SharedPrefix
from tuner.workload import LoadLevel

_BETWEEN_TURNS_S = 10.0  # of a conversation at a rate


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to send: `text` is about `input_tokens` tokens long, `output_tokens` are asked for."""

    text: str
    input_tokens: int
    output_tokens: int


class Prompts(Sequence[Prompt]):
    """The prompts of one level, made when they are asked for: a level of any size costs no memory.

    A prompt depends on the level's seed, scenario and load and on its own index, on nothing else. No two
    begin alike, but for what their scenario lets them share: the first words spell the index, counted from
    a place that differs by level, so that neither prompts nor levels find each other in a prefix cache.
    (Prompts of one or two words repeat after 241 or 58,081 of them: there are no more.)
    """

    def __init__(self, level: LoadLevel) -> None:
        self._level = level
        self._key = level.random_key
        words = level.vocabulary.words
        self._padded = np.array([f" {word}" for word in words], dtype="S5")
        self._spelled = len(words) ** 3  # indices that three words can spell: 14 million
        self._origin = int(np.random.default_rng(self._key).integers(self._spelled))

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
        scenario, rng = self._level.scenario, np.random.default_rng((*self._key, index))
        if isinstance(scenario, Dataset):
            return self._row(index)
        if isinstance(scenario, Conversation):
            return self._turn(scenario, index)
        input_tokens, output_tokens = scenario.sample(rng)
        own = self._words(rng, max(input_tokens - len(self._prefix), 0), index)
        return self._prompt(np.concatenate((self._prefix, own)), output_tokens)

    @cached_property
    def _prefix(self) -> np.ndarray:
        """What all prompts begin with: the same at every load, so that a warm cache knows it."""
        scenario, tokens = self._level.scenario, self._level.prefix_tokens
        if isinstance(scenario, SharedPrefix):
            tokens = scenario.prefix_tokens
        return self._drawn(np.random.default_rng((self._key[0], tokens)), tokens)

    def _words(self, rng: np.random.Generator, count: int, index: int) -> np.ndarray:
        """Words by number, the first of them spelling `index`."""
        size = len(self._padded)
        words = self._drawn(rng, max(count, 3))
        place = (self._origin + index) % self._spelled
        words[:3] = (place % size, place // size % size, place // size**2)
        return words[:count]

    def _drawn(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(len(self._padded), size=count, dtype=np.int16)

    def _prompt(self, words: np.ndarray, output_tokens: int) -> Prompt:
        """Of as many tokens as `words` has, those included that the server puts before every prompt."""
        kept = words[: max(1, len(words) - self._level.vocabulary.special_tokens)]
        text = self._padded[kept].tobytes().decode("ascii").lstrip()
        return Prompt(text, len(words), output_tokens)

    def _turn(self, talk: Conversation, index: int) -> Prompt:
        """Conversations in rounds, as many at once as are open: a turn comes long after the one before."""
        rate = self._level.request_rate
        at_once = self._level.concurrency if rate is None else ceil(rate * _BETWEEN_TURNS_S)
        block, place = divmod(index, at_once * talk.turns)
        turn, number = divmod(place, at_once)
        number += block * at_once
        rng = np.random.default_rng((*self._key, number))
        said = self._words(rng, talk.turns * (talk.input_tokens + talk.output_tokens), number)
        length = turn * (talk.input_tokens + talk.output_tokens) + talk.input_tokens
        return self._prompt(said[:length], talk.output_tokens)

    @cached_property
    def _order(self) -> np.ndarray:
        rows = len(read_dataset(self._level.dataset))
        return np.random.default_rng(self._key).permutation(rows)

    def _row(self, index: int) -> Prompt:
        """The file's rows in an order that the seed and the load give, again and again."""
        rows = read_dataset(self._level.dataset)
        row = rows[self._order[index % len(rows)]]
        return Prompt(row.prompt, row.input_tokens, row.output_tokens)


def prompts(level: LoadLevel) -> Sequence[Prompt]:
    """The level's warm-up prompts followed by its measured prompts, the same for the same seed."""
    return Prompts(level)
