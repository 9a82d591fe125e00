"""Words to make prompts of, each one token. Knows nothing of what they are used for.

Each has four letters and is one token, both with a space before it and at the start of a text, in the
vocabularies of GPT-4 (cl100k), GPT-4o (o200k), Qwen, Voyage 3, Mistral Tekken and Mistral v1 and v3
(SentencePiece), looked up in the files of bpe-openai 0.1.4, dashscope 2.0.2 and mistral-common 1.13.1.
One length for all lets a prompt be cut from an array of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path

_WORDS = """
able also area away back ball band bank base beat best bird blue body book both call camp card care case
cell city club come cost dark data date days dead deep does done door down draw drop each edge else even
ever face fact fall fast file fill film find fire fish five flat flow food foot form four free from full
fund game girl gold good gray half hall hand hard have head help here high hill hold hole home hour idea
into iron item join just keep kind king know land last late left less life like line list live long look
lord loss love made main make many mark mass mean mile mind mine miss more most move must name need news
next nice none note once only open oral over pack page paid pair park part pass path pick plan play post
pull push rate read real rest rich ride ring rise road rock role roll room root rose rule safe same save
seek seen self send sent ship shop shot show side sign site size skin soft some sort star step stop such
take talk task team term test text than that then they this time tiny tool town tree true turn type unit
used user very view vote wait walk wall wave ways weak wear week well were west what when wide will wind
wing wise with wood word work yard year your zero
"""
WORDS: tuple[str, ...] = tuple(_WORDS.split())
_FEWEST = 64  # words that a tokenizer must leave, for prompts that do not begin alike


@dataclass(frozen=True)
class Vocabulary:
    """Words of one token each, and the tokens that the server puts before every prompt (BOS, say).

    `exact` says that a tokenizer was asked; otherwise n words stand for about n tokens.
    """

    words: tuple[str, ...]
    special_tokens: int = 0
    exact: bool = False


USUAL = Vocabulary(WORDS)


@lru_cache(maxsize=8)
def vocabulary_of(place: str) -> Vocabulary:
    """The words that are one token for the tokenizer.json at `place`, a model's folder or that file.

    `USUAL` where it is not there, where the library `tokenizers` is not, or where too few words are.
    """
    path = Path(place)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        if path.name != "tokenizer.json" or not path.is_file():
            return USUAL
        tokenizer = import_module("tokenizers").Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001  not installed, not readable, or of a version it does not know
        return USUAL

    def tokens(text: str, *, special: bool = False) -> int:
        return len(tokenizer.encode(text, add_special_tokens=special).ids)

    words = tuple(word for word in WORDS if tokens(f"{word} {word} {word}") == 3)
    if len(words) < _FEWEST:
        return USUAL
    return Vocabulary(words, tokens(words[0], special=True) - tokens(words[0]), exact=True)
