"""Which engines there are, by name: data only, so that a task can be checked without importing any.

A package outside this repository adds one through an entry point in the group `tuner.engines`, whose
value is `module:Class`; docs/adding-an-engine.md shows how.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points

GROUP = "tuner.engines"
_OWN = {
    "llamacpp": "tuner.engines.llamacpp.adapter:LlamaCppEngine",
    "sglang": "tuner.engines.sglang:SGLangEngine",
    "simulator": "tuner.engines.simulator.adapter:SimulatorEngine",
    "vllm": "tuner.engines.vllm:VllmEngine",
}


@cache
def engines() -> dict[str, str]:
    """`module:Class` by name; the project's own engines are not replaced by a plug-in of their name."""
    plugins = {point.name: point.value for point in entry_points(group=GROUP)}
    return {**plugins, **_OWN}


def unknown_engine(name: str) -> str:
    """What is wrong with `name`, with the nearest known one; empty where there is such an engine."""
    if name in engines():
        return ""
    near = get_close_matches(name, engines(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(engines()))}"
    return f"no engine is called {name!r} ({hint})"
