"""Requests from a file: JSON lines with a `prompt`, or conversations as ShareGPT and OpenAI write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

CHARACTERS_PER_TOKEN = 4  # of English text, by OpenAI's rule of thumb; only where no number is given
USUAL_OUTPUT_TOKENS = 128  # of a row that tells neither `max_tokens` nor an answer
_MOST_TOKENS = 1_000_000
_USER, _ANSWER = ("human", "user"), ("gpt", "assistant", "chatgpt", "bard", "bing")


@dataclass(frozen=True, slots=True)
class Row:
    """A request: its prompt, about how long that is, and how many tokens are asked for."""

    prompt: str
    input_tokens: int
    output_tokens: int


@lru_cache(maxsize=4)
def read_dataset(path: str) -> tuple[Row, ...]:
    """The requests in the file at `path`; ValueError, with the line or entry, for what is none.

    Each line, or each entry of one JSON array, is an object: either `prompt` and optionally `max_tokens`,
    or a conversation (`conversations` of `from` and `value`, or `messages` of `role` and `content`), of
    which the first question is the prompt, and the first answer tells how many tokens are asked for.
    Conversations that do not begin with a question and an answer are left out, as vLLM and SGLang do.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("is no file")  # a device or a pipe may have no end
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    rows = tuple(row for place, entry in _entries(text) if (row := _row(entry, place)) is not None)
    if not rows:
        raise ValueError("holds no request")
    return rows


def _entries(text: str) -> Iterator[tuple[str, Any]]:
    """(place, value) of each line or entry."""
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is not JSON: {error}") from error
        yield from ((f"entry {number}", value) for number, value in enumerate(values))
        return
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold what else ends a line
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number} is not JSON: {error}") from error


def _row(entry: Any, place: str) -> Row | None:
    if not isinstance(entry, dict):
        raise ValueError(f"{place} is not an object")
    talk = entry.get("conversations", entry.get("messages"))
    if isinstance(talk, list):
        if (exchange := _first_exchange(talk)) is not None:
            _require_whole(exchange.prompt, place)
        return exchange
    prompt, most = entry.get("prompt"), entry.get("max_tokens", USUAL_OUTPUT_TOKENS)
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(f"{place} has no prompt")
    _require_whole(prompt, place)
    if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= _MOST_TOKENS:
        raise ValueError(f"{place}: max_tokens must be a number from 1 to {_MOST_TOKENS}")
    return Row(prompt, _tokens(prompt), most)


def _require_whole(prompt: str, place: str) -> None:
    if any(0xD800 <= ord(character) <= 0xDFFF for character in prompt):
        raise ValueError(f"{place} has half a surrogate pair in its prompt")


def _first_exchange(talk: list[Any]) -> Row | None:
    turns = [
        (turn.get("from", turn.get("role")), turn.get("value", turn.get("content")))
        for turn in talk
        if isinstance(turn, dict)
    ]
    turns = [turn for turn in turns if turn[0] != "system"]
    match turns[:2]:
        case [(who, str(question)), (other, str(answer))] if who in _USER and other in _ANSWER and question:
            return Row(question, _tokens(question), max(_tokens(answer), 2))
    return None


def _tokens(text: str) -> int:
    return min(ceil(len(text) / CHARACTERS_PER_TOKEN), _MOST_TOKENS)
