"""A Llama of two small layers for servers that make up its weights (`--load-format dummy`)."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu.model import write_model
from tuner.engines.simulator.architecture import Model

TINY = Model("tiny", 256, 2, 4, 2, 64, 512, vocabulary=257, context=4096, tied=True)


def write_tiny_model(folder: Path) -> Path:
    """Writes config and tokenizer, one token a byte, into `folder`; returns it."""
    return write_model(folder, TINY)
