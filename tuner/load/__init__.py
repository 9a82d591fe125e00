"""Load generators: what puts a load level on a server and records every request."""

from __future__ import annotations

from tuner.load.base import LoadGenerator
from tuner.load.client import NativeClient
from tuner.load.genai_bench import GenaiBench

LOAD_GENERATORS: dict[str, LoadGenerator] = {"native": NativeClient(), "genai-bench": GenaiBench()}
