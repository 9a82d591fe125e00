"""Looking at something again and again while something else goes on. Knows nothing of what is seen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

import numpy as np

_LAST_LOOK_S = 4.0  # is waited for, where one is under way at the end

Seen = TypeVar("Seen")
Window = tuple[float, float]  # from when to when (`perf_counter`)


@contextmanager
def looking(look: Callable[[], Seen | None], every_s: float) -> Iterator[list[tuple[float, Seen]]]:
    """Looks before, during and after what is done within; yields the list of (`perf_counter`, what was seen).

    A look that sees nothing (None) leaves nothing in it; where the first sees nothing, no other follows.
    """
    seen: list[tuple[float, Seen]] = []

    def once() -> bool:
        at_s, found = perf_counter(), look()
        if found is not None:
            seen.append((at_s, found))
        return found is not None

    if not once():
        yield seen
        return
    over = threading.Event()

    def again() -> None:
        pause_s = every_s / 4  # a short load level is seen as well
        while not over.wait(pause_s):
            pause_s = every_s
            once()

    thread = threading.Thread(target=again, name="looking", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join(_LAST_LOOK_S)
        once()


def within(seen: Sequence[tuple[float, Seen]], window: Window | None) -> list[Seen]:
    """What was seen in the window; where no look fell into it, or it is not known, all but first and last."""
    inside = [it for at_s, it in seen if window is not None and window[0] <= at_s <= window[1]]
    return inside or [it for _, it in seen[1:-1]]


def rise(series: Sequence[tuple[float, float]], window: Window) -> float:
    """By how much a counter rose in the window, between looks by straight lines."""
    times, values = zip(*series, strict=True)
    begin, end = np.interp(window, times, values)
    return float(end - begin)
