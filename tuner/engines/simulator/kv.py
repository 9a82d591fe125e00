"""The KV cache: which tokens are in memory, what can be freed, and what requests share.

Every cached token lies either in the prefix cache (locked by running requests, or free to be evicted) or in
one request's private part: its newest tokens, which are moved over as prefills and requests end.
"""

from __future__ import annotations

from tuner.engines.simulator.radix import RadixCache
from tuner.engines.simulator.request import Request


class KvPool:
    """Room for `capacity` tokens; without `sharing` (--disable-radix-cache) nothing outlives its request."""

    def __init__(self, capacity: int, *, sharing: bool) -> None:
        self.capacity = capacity
        self.prefixes = RadixCache()
        self._sharing = sharing
        self._private = 0

    @property
    def free(self) -> int:
        """Tokens that hold nothing."""
        return self.capacity - self.prefixes.size - self._private

    @property
    def available(self) -> int:
        """Tokens that can be had: free ones, and prefixes that no running request uses."""
        return self.free + self.prefixes.evictable

    @property
    def used(self) -> int:
        """Tokens that running requests hold."""
        return self.capacity - self.available

    def allocate(self, tokens: int) -> None:
        """Takes `tokens`, of those available, for private parts; evicts prefixes where it must."""
        self.prefixes.evict(tokens - self.free)
        self._private += tokens

    def acquire_prefix(self, request: Request) -> int:
        """Locks the longest cached prefix of `request`, its last token left out; the prefix's length."""
        if not self._sharing:
            return 0
        length, request.node = self.prefixes.match(request.all_tokens()[:-1])
        self.prefixes.lock(request.node)
        return length

    def release_prefix(self, request: Request) -> None:
        """Takes back `acquire_prefix`."""
        if request.node is not None:
            self.prefixes.unlock(request.node)
            request.node = None

    def share(self, request: Request) -> None:
        """Moves what `request` has computed into the prefix cache; what was there already is freed."""
        if not self._sharing:
            return
        _, node = self.prefixes.insert(request.all_tokens()[: request.computed])
        self.prefixes.lock(node)
        self.release_prefix(request)
        request.node = node
        self._private -= request.computed - request.prefix
        request.prefix = request.computed

    def release(self, request: Request) -> None:
        """Frees the private part of `request`; its prefix stays until it is evicted."""
        self._private -= request.computed - request.prefix
        self.release_prefix(request)
        request.computed = request.prefix = 0

    def flush(self) -> None:
        """Forgets every prefix; no request may run."""
        self.prefixes = RadixCache()
