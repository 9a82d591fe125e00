"""The prefix cache against a plain model of it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.engines.simulator.radix import RadixCache

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=30)


def common_prefix(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )


@given(sequences, st.lists(st.integers(0, 2), max_size=12).map(tuple))
def test_match_is_the_longest_prefix_of_anything_inserted(
    inserted: list[tuple[int, ...]], wanted: tuple[int, ...]
) -> None:
    cache = RadixCache()
    prefixes: set[tuple[int, ...]] = set()
    for tokens in inserted:
        known, _ = cache.insert(tokens)
        assert known == max((len(p) for p in prefixes if tokens[: len(p)] == p), default=0)
        prefixes |= {tokens[: i + 1] for i in range(len(tokens))}
    assert cache.match(wanted)[0] == max(common_prefix(tokens, wanted) for tokens in inserted)
    assert cache.size == cache.evictable == len(prefixes)


@settings(deadline=None)
@given(sequences, st.data())
def test_locked_prefixes_survive_any_eviction(inserted: list[tuple[int, ...]], data: st.DataObject) -> None:
    cache = RadixCache()
    locks = []
    for tokens in inserted:
        _, node = cache.insert(tokens)
        if data.draw(st.booleans()):
            cache.lock(node)
            locks.append((tokens, node))
        cache.evict(data.draw(st.integers(0, 10)))
        assert 0 <= cache.evictable <= cache.size
    cache.evict(10**9)
    assert cache.evictable == 0
    assert cache.size == len({tokens[: i + 1] for tokens, _ in locks for i in range(len(tokens))})
    for tokens, node in locks:
        assert cache.match(tokens)[0] == len(tokens)
        cache.unlock(node)
    cache.evict(10**9)
    assert cache.size == 0


def test_the_longest_unused_goes_first() -> None:
    cache = RadixCache()
    cache.insert((1, 1, 1))
    cache.insert((2, 2, 2))
    cache.match((1, 1, 1))
    cache.evict(1)
    assert cache.match((1, 1, 1))[0] == 3
    assert cache.match((2, 2, 2))[0] == 0
