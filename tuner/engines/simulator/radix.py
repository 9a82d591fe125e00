"""A radix tree of cached token sequences with reference counts and LRU eviction, as SGLang's RadixCache.

Counts tokens only: where they lie in memory is nobody's concern here. A token is any hashable value.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Sequence
from itertools import count

Tokens = tuple[Hashable, ...]


class Node:
    """An edge of the tree: `key` are its tokens, `locks` the running requests whose prefix it is part of."""

    __slots__ = ("children", "key", "last_used", "locks", "parent", "queued")

    def __init__(self, key: Tokens, parent: Node | None) -> None:
        self.key = key
        self.parent = parent
        self.children: dict[Hashable, Node] = {}
        self.locks = 0
        self.last_used = 0
        self.queued = False  # whether it stands in the eviction queue

    def is_free_leaf(self) -> bool:
        return self.parent is not None and not self.children and self.locks == 0


def _common_prefix(left: Sequence[Hashable], right: Sequence[Hashable], start: int) -> int:
    """How many tokens of `left` stand in `right` from `start` on; compares slices of doubling length."""
    limit = min(len(left), len(right) - start)
    if left[:limit] == right[start : start + limit]:
        return limit
    low, high = 0, limit  # left[:low] is equal, left[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[start + low : start + middle]:
            low = middle
        else:
            high = middle
    return low


class RadixCache:
    """`size` tokens are cached; those of unlocked nodes, `evictable`, can be taken away."""

    def __init__(self) -> None:
        self._clock = 0
        self.root = Node((), None)
        self.size = 0
        self.evictable = 0
        self._serial = count()
        self._queue: list[tuple[int, int, Node]] = []  # every free leaf, by when it was last used or earlier

    def match(self, tokens: Tokens) -> tuple[int, Node]:
        """(length of the longest cached prefix, the node it ends in), which counts as a use."""
        self._clock += 1
        node, length = self.root, 0
        while (child := node.children.get(tokens[length]) if length < len(tokens) else None) is not None:
            common = _common_prefix(child.key, tokens, length)
            if common < len(child.key):
                child = self._split(child, common)
            child.last_used = self._clock
            node, length = child, length + common
        return length, node

    def insert(self, tokens: Tokens) -> tuple[int, Node]:
        """Caches `tokens`; (how many were cached before, the node that they end in)."""
        length, node = self.match(tokens)
        if length < len(tokens):
            leaf = Node(tokens[length:], node)
            leaf.last_used = self._clock
            node.children[tokens[length]] = leaf
            self.size += len(leaf.key)
            self.evictable += len(leaf.key)
            self._offer(leaf)
            node = leaf
        return length, node

    def lock(self, node: Node) -> None:
        """Keeps `node` and its prefix from eviction until it is unlocked as often."""
        for step in self._path(node):
            if step.locks == 0:
                self.evictable -= len(step.key)
            step.locks += 1

    def unlock(self, node: Node) -> None:
        """Takes one lock back."""
        for step in self._path(node):
            step.locks -= 1
            if step.locks == 0:
                self.evictable += len(step.key)
        self._offer(node)

    def evict(self, tokens: int) -> None:
        """Forgets unlocked leaves, the longest unused first, until `tokens` are free or none is left."""
        while tokens > 0 and self._queue:
            stamp, _, leaf = heapq.heappop(self._queue)
            leaf.queued = False
            if stamp != leaf.last_used or not leaf.is_free_leaf():
                self._offer(leaf)
                continue
            parent = leaf.parent
            assert parent is not None
            del parent.children[leaf.key[0]]
            leaf.parent = None
            tokens -= len(leaf.key)
            self.size -= len(leaf.key)
            self.evictable -= len(leaf.key)
            self._offer(parent)

    def _offer(self, node: Node) -> None:
        """Queues `node` for eviction if it is a free leaf."""
        if node.is_free_leaf() and not node.queued:
            node.queued = True
            heapq.heappush(self._queue, (node.last_used, next(self._serial), node))

    def nodes(self) -> Iterator[Node]:
        """Every node in depth-first order, the root left out."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _split(self, node: Node, length: int) -> Node:
        """Puts a node of the first `length` tokens above `node`, and returns it."""
        parent = node.parent
        assert parent is not None
        upper = Node(node.key[:length], parent)
        upper.locks, upper.last_used = node.locks, node.last_used
        parent.children[upper.key[0]] = upper
        node.key, node.parent = node.key[length:], upper
        upper.children[node.key[0]] = node
        return upper

    def _path(self, node: Node) -> Iterator[Node]:
        step: Node | None = node
        while step is not None and step is not self.root:
            yield step
            step = step.parent
