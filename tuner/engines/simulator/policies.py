"""The order in which waiting requests are considered: SGLang's schedule policies."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tuner.engines.simulator.radix import Node, RadixCache
from tuner.engines.simulator.request import Request

# SGLang drops lpm for fcfs while more requests wait than this.
LPM_QUEUE_LIMIT = 128
# Among requests with hardly any cached prefix that share one with each other, lpm lets one go first, so that
# the others find it cached (SGLang: IN_BATCH_PREFIX_CACHING_*_THRESHOLD).
IN_BATCH_PREFIX = 32

Policy = Callable[[list[Request], RadixCache, Random], None]


def keep_order(waiting: list[Request], cache: RadixCache, rng: Random) -> None:
    """fcfs."""


def longest_prefix_first(waiting: list[Request], cache: RadixCache, rng: Random) -> None:
    """lpm."""
    if len(waiting) > LPM_QUEUE_LIMIT:
        return
    seen = RadixCache()
    rank: dict[Request, float] = {}
    for request in waiting:
        tokens = request.all_tokens()
        matched, _ = cache.match(tokens)
        rank[request] = -min(matched, len(tokens) - 1)
        if matched <= IN_BATCH_PREFIX:
            shared, _ = seen.match(tokens)
            if shared >= IN_BATCH_PREFIX:
                rank[request] = float("inf")
            else:
                seen.insert(tokens)
    waiting.sort(key=rank.__getitem__)


def shuffled(waiting: list[Request], cache: RadixCache, rng: Random) -> None:
    """random."""
    rng.shuffle(waiting)


def longest_output_first(waiting: list[Request], cache: RadixCache, rng: Random) -> None:
    """lof."""
    waiting.sort(key=lambda request: -request.max_new_tokens)


def heaviest_branch_first(waiting: list[Request], cache: RadixCache, rng: Random) -> None:
    """dfs-weight: depth first through the cache, branches with more waiting requests first."""
    at: dict[Node, list[Request]] = {}
    weight: dict[Node, int] = {}
    for request in waiting:
        _, node = cache.match(request.all_tokens())
        at.setdefault(node, []).append(request)
        step: Node | None = node
        while step is not None:
            weight[step] = weight.get(step, 0) + 1
            step = step.parent
    waiting.clear()
    stack = [(cache.root, False)]
    while stack:
        node, visited = stack.pop()
        if visited:
            waiting.extend(at.get(node, ()))
            continue
        stack.append((node, True))
        branches = sorted((c for c in node.children.values() if c in weight), key=lambda child: weight[child])
        stack.extend((child, False) for child in branches)


POLICIES: dict[str, Policy] = {
    "lpm": longest_prefix_first,
    "dfs-weight": heaviest_branch_first,
    "random": shuffled,
    "lof": longest_output_first,
}
CACHE_AWARE = {"lpm", "dfs-weight"}


def policy_named(name: str, *, cached: bool) -> Policy:
    """The order that `--schedule-policy name` means; without a prefix cache the cache-aware ones are fcfs."""
    return keep_order if name in CACHE_AWARE and not cached else POLICIES.get(name, keep_order)
