"""What a streamed completion said: first and last token's offsets, usage, and whether it is whole.

Knows nothing of sockets or clocks. A body is read from both of its ends only, as far as the first token
and the last: whatever lies between would cost a JSON parse for each token and tell nothing more, because
events are no measure of tokens (engines put several tokens into one, or none that shows).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_DATA = b"data:"
_DONE = b"[DONE]"
_MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion as its stream of events told it.

    `first` and `last` are offsets into the body: where the first event with text ends, and the last with a
    choice (text, or the reason to finish; the usage and `[DONE]` after it do not count). Where no event
    had text, `first` is that of the first choice which is more than a role. `sound` says that every event
    looked at was a completion chunk.
    """

    first: int | None = None
    last: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    done: bool = False
    sound: bool = True


def read_answer(body: bytes | bytearray) -> Answer:
    """The answer that `body` holds; never raises, whatever the bytes are.

    Lines may end in LF or CRLF; comments and fields other than `data` are skipped; each event's data
    stands on one line, as every engine writes it. A line that was cut off is no event.
    """
    if not body.endswith((b"\n", _DONE)):
        body = body[: body.rfind(b"\n") + 1]
    done = False
    last: int | None = None
    usage: dict[str, Any] = {}
    reason: str | None = None
    for data, end in _data_backwards(body):
        if data == _DONE:
            done = True
            continue
        chunk = _chunk(data)
        if chunk is None:
            return Answer(done=done, sound=False)
        usage = usage or _mapping(chunk.get("usage"))
        choices = _choices(chunk)
        if choices:
            last, reason = end, _text_or_none(choices[0].get("finish_reason"))
            break
    first, sound = _first_token(body)
    return Answer(
        first,
        last,
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        reason,
        done,
        sound,
    )


def _first_token(body: bytes | bytearray) -> tuple[int | None, bool]:
    """Where the first event with text ends, and whether all events up to it were chunks."""
    shown: int | None = None
    for data, end in _data_forwards(body):
        if data == _DONE:
            break
        chunk = _chunk(data)
        if chunk is None:
            return shown, False
        for choice in _choices(chunk):
            if _has_text(choice):
                return end, True
            if shown is None and not _mapping(choice.get("delta")).get("role"):
                shown = end
    return shown, True


def _data_forwards(body: bytes | bytearray) -> Iterator[tuple[bytes, int]]:
    """(data, offset of its end) of each `data:` line, from the first to the last."""
    start = 0
    while start < len(body):
        newline = body.find(b"\n", start)
        end = newline if newline >= 0 else len(body)
        if body.startswith(_DATA, start):
            yield bytes(body[start + len(_DATA) : end]).strip(), end
        start = end + 1


def _data_backwards(body: bytes | bytearray) -> Iterator[tuple[bytes, int]]:
    """The same from the last to the first."""
    end = len(body)
    while end > 0:
        start = body.rfind(b"\n", 0, end) + 1
        if body.startswith(_DATA, start):
            yield bytes(body[start + len(_DATA) : end]).strip(), end
        end = start - 1


def _chunk(data: bytes) -> dict[str, Any] | None:
    """The completion chunk in `data`; None for anything else, such as an error in mid-stream."""
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return chunk if isinstance(chunk, dict) and not chunk.get("error") else None


def _choices(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    return [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []


def _has_text(choice: dict[str, Any]) -> bool:
    """Whether the choice shows a token: completion text, or any part of a chat delta but its role."""
    delta = _mapping(choice.get("delta"))
    return bool(choice.get("text")) or any(value for key, value in delta.items() if key != "role")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none, or more than any answer has."""
    counts = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS
    return value if counts else None
