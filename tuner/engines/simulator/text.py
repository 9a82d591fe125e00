"""Text to tokens and back: one token per word between blanks, a stated simplification.

Generated text repeats the same words for every request, as a model at temperature 0 would for the same
prompt, so that a conversation sent back is found in the prefix cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from sys import intern

from tuner.engines.simulator.radix import Tokens

WORDS = """
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work government number night point
home water room mother area money story fact month lot right study book eye job word business issue
side kind head house service friend father power hour game line end member law
""".split()  # noqa: SIM905  reads better than seventy strings
_output: list[str] = []


def tokenise(text: str) -> Tokens:
    """The words of `text`; equal words are one object, so that a cache of millions of tokens stays small."""
    return tuple(map(intern, text.split()))


def tokenise_chat(messages: Iterable[tuple[str, str]]) -> Tokens:
    """The tokens of (role, content) pairs under a plain chat template, open for the assistant's answer."""
    text = " ".join(f"<|{role}|> {content} <|end|>" for role, content in messages)
    return tokenise(f"<|begin|> {text} <|assistant|>")


def output_word(index: int) -> str:
    """The word generated as token `index` (from 0) of any answer."""
    return WORDS[index % len(WORDS)]


def output_tokens(length: int) -> Tokens:
    """The first `length` generated tokens."""
    while len(_output) < length:
        _output.extend(map(intern, WORDS))
    return tuple(_output[:length])
