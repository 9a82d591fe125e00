"""A study as it goes on, as server-sent events. Knows nothing of what a study is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from starlette.concurrency import run_in_threadpool

from tuner.serve.models import StudyBody

_EVERY_S = 0.5
_SILENCE_S = 15.0  # after which a comment shows a proxy that the stream lives


async def events(look: Callable[[], StudyBody]) -> AsyncIterator[str]:
    """A `study` event at once and whenever what `look` shows has changed, `end` when nothing more comes."""
    shown: StudyBody | None = None
    number, spoke = 0, time.monotonic()
    while True:
        body = await run_in_threadpool(look)
        if body != shown:
            shown, number, spoke = body, number + 1, time.monotonic()
            yield f"id: {number}\nevent: study\ndata: {body.model_dump_json()}\n\n"
        if body.state.ended:
            yield f"event: end\ndata: {body.state}\n\n"
            return
        if time.monotonic() - spoke > _SILENCE_S:
            spoke = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(_EVERY_S)
