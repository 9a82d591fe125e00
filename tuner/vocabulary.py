"""Words to make prompts of. Knows nothing of what they are used for.

Each has four letters and is one token, both with a space before it and at the start of a text, in the
vocabularies of GPT-4 (cl100k), GPT-4o (o200k), Qwen, Voyage 3, Mistral Tekken and Mistral v1 and v3
(SentencePiece), looked up in the files of bpe-openai 0.1.4, dashscope 2.0.2 and mistral-common 1.13.1.
One length for all lets a prompt be cut from an array of bytes.
"""

from __future__ import annotations

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
