"""Which engines there are, by name: data only, so that a task can be checked without importing any."""

from __future__ import annotations

from difflib import get_close_matches

ENGINES = {
    "sglang": "tuner.engines.sglang:SGLangEngine",
    "simulator": "tuner.engines.simulator.adapter:SimulatorEngine",
}


def unknown_engine(name: str) -> str:
    """What is wrong with `name`, with the nearest known one; empty where there is such an engine."""
    if name in ENGINES:
        return ""
    near = get_close_matches(name, ENGINES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(ENGINES))}"
    return f"no engine is called {name!r} ({hint})"
