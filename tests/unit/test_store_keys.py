"""Document ids → keys → row numbers."""

from __future__ import annotations

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from store.format import U32, U64
from store.keys import Index, build_buckets, bytes_keys, integer_keys, string_keys

Keys = npt.NDArray[np.uint64]

MASK = 2**64 - 1
NUMBERS = st.integers(0, MASK)


def index_of(keys_n: Keys) -> tuple[Index, dict[int, int]]:
    """An index of ascending keys whose rows are in another order, and the dict that it must agree with."""
    rows_n = np.random.default_rng(1).permutation(len(keys_n)).astype(U32)
    return Index(keys_n, rows_n, build_buckets(keys_n)), dict(zip(keys_n.tolist(), rows_n.tolist(), strict=True))


def assert_agrees(keys_n: Keys, asked_N: Keys) -> None:
    """The index finds exactly what the dict has."""
    index, rows = index_of(keys_n)
    found_rows, found = index.find(asked_N)
    assert found.tolist() == [key in rows for key in asked_N.tolist()]
    assert found_rows.tolist() == [rows[key] for key in asked_N.tolist() if key in rows]


def neighbours(keys_n: Keys) -> Keys:
    """The keys, those one above and one below each, and both ends of the range."""
    return np.concatenate([keys_n, keys_n + np.uint64(1), keys_n - np.uint64(1), np.array([0, MASK], U64)])


def unmixed(key: int, seed: int) -> int:
    """The number that `integer_keys` turned into `key`."""

    def unshifted(value: int, shift: int) -> int:
        result = value
        for _ in range(64 // shift):
            result = value ^ (result >> shift)
        return result

    key = unshifted(key, 31) * pow(0x94D049BB133111EB, -1, 2**64) & MASK
    key = unshifted(key, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
    return (unshifted(key, 30) - seed * 0x9E3779B97F4A7C15) & MASK


@settings(max_examples=100, deadline=None)
@given(st.lists(NUMBERS, max_size=20), NUMBERS)
def test_integer_mix_is_invertible(numbers: list[int], seed: int) -> None:
    """No two integers share a key under any seed: each number can be computed back from its key."""
    keys = integer_keys(np.array(numbers, U64), seed)
    assert [unmixed(key, seed) for key in keys.tolist()] == numbers


def test_consecutive_integers_spread() -> None:
    """Consecutive integers do not crowd the bucket directory: the fullest of 10^5 buckets has a handful of keys."""
    keys = np.sort(integer_keys(np.arange(100_000, dtype=U64), 0))
    assert int(np.diff(build_buckets(keys)).max()) <= 10


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), max_size=20), NUMBERS)
def test_string_keys_are_xxh3_of_the_utf8(ids: list[str], seed: int) -> None:
    """A string's key is xxh3_64 of its UTF-8 under the seed, whether it comes as text or as bytes."""
    expected = [xxhash.xxh3_64(id_.encode(), seed).intdigest() for id_ in ids]
    assert string_keys(ids, seed).tolist() == expected
    assert bytes_keys([id_.encode() for id_ in ids], seed).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.sets(NUMBERS, min_size=1, max_size=200), st.lists(NUMBERS, max_size=20))
def test_find_equals_a_dict(present: set[int], asked: list[int]) -> None:
    """For any keys, find gives the row of each one that is present and says which are not."""
    keys = np.array(sorted(present), U64)
    assert_agrees(keys, np.concatenate([neighbours(keys), np.array(asked, U64)]))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 1023, 1024, 1025, 65_536, 100_000])
def test_find_at_every_size_of_directory(n: int) -> None:
    """Sizes at and beside powers of two, where the directory grows by a bit, find all and only what is there."""
    keys = np.unique(np.random.default_rng(n).integers(0, MASK, n, U64, endpoint=True))
    assert_agrees(keys, neighbours(keys[:: max(1, n // 1000)]))


@pytest.mark.parametrize("first", [0, 1 << 63, 2**64 - 100_000])
def test_crowded_keys(first: int) -> None:
    """Keys that someone crowded into one bucket are still found, in memory that the crowd does not multiply."""
    keys = np.arange(100_000, dtype=U64) + np.uint64(first)
    asked = neighbours(keys[::200])
    assert_agrees(keys, asked)
    index, _ = index_of(keys)
    tracemalloc.start()
    index.find(asked)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_no_keys_asked_for() -> None:
    """Asking for nothing finds nothing."""
    rows, found = index_of(np.array([5, 6], U64))[0].find(np.empty(0, U64))
    assert (len(rows), len(found)) == (0, 0)
