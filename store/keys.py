"""Document ids → 64-bit keys → row numbers, in a handful of numpy calls and no Python statement a document.

Shapes: N ids asked for, n documents of a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from store.format import U32, U64

Keys = npt.NDArray[np.uint64]
RowNumbers = npt.NDArray[np.uint32]

_BLOCK = 1 << 16  # keys at a time, where all at once would take much memory

# Of `integer_keys`. An array of no dimension spares numpy the conversion, which takes as long as the operation.
_30, _27, _31 = (np.array(bits, U64) for bits in (30, 27, 31))
_FIRST, _SECOND = (np.array(factor, U64) for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def string_keys(ids: Sequence[str], seed: int) -> Keys:
    """xxh3_64 of the UTF-8 ids under the seed: u64 [N].

    An id that is absent is taken for one of n present ones with probability n / 2^64.
    """
    hashes = map(xxhash.xxh3_64_intdigest, map(str.encode, ids), repeat(seed))
    return np.fromiter(hashes, dtype=U64, count=len(ids))


def bytes_keys(ids: Sequence[bytes], seed: int) -> Keys:
    """`string_keys` of ids that are UTF-8 already."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, ids, repeat(seed)), dtype=U64, count=len(ids))


def integer_keys(numbers_N: npt.NDArray[np.uint64], seed: int) -> Keys:
    """An invertible mix of number and seed, so that two numbers never share a key: u64 [N].

    The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every step is a bijection of 64 bits. It spreads consecutive
    numbers over the whole range, which the bucket directory needs.
    """
    keys = numbers_N + np.uint64((seed * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
    keys ^= keys >> _30
    keys *= _FIRST
    keys ^= keys >> _27
    keys *= _SECOND
    keys ^= keys >> _31
    return keys


def build_buckets(keys_n: Keys) -> npt.NDArray[np.uint32]:
    """The bucket directory of ascending keys: u32 [2^b + 1], with n < 2^b ≤ 2n, so about one key a bucket."""
    bits = len(keys_n).bit_length()
    buckets = np.zeros((1 << bits) + 1, dtype=U32)
    for start in range(0, len(keys_n), _BLOCK):
        heads = (keys_n[start : start + _BLOCK] >> np.uint64(64 - bits)).astype(np.int64)
        buckets[heads[0] + 1 : heads[-1] + 2] += np.bincount(heads - heads[0]).astype(U32)
    return np.cumsum(buckets, dtype=U32, out=buckets)


# No bucket of hashed keys comes near this many. Ids that someone chose so as to crowd one bucket do, and comparing all
# places at once would then multiply every lookup: a binary search takes over.
_CROWDED = 64


class Index:
    """Finds keys among the n of a segment.

    The directory gives the place where a key's bucket starts; the key itself is at most a few places on (8 for a
    million keys, 10 for a billion), so all places are compared at once. That takes two cache misses a key where a
    binary search takes twenty, and hardly grows with n.

    Args:
        keys_n: u64, ascending, each once.
        rows_n: u32, parallel to `keys_n`.
        buckets: u32, from `build_buckets`.
    """

    def __init__(self, keys_n: Keys, rows_n: RowNumbers, buckets: npt.NDArray[np.uint32]) -> None:
        self._keys_n, self._rows_n, self._buckets = keys_n, rows_n, buckets
        self._shift = np.array(64 - (len(buckets) - 1).bit_length() + 1, U64)
        self._places = np.arange(int(np.diff(buckets).max(initial=1)), dtype=np.int64)

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """What lookups read."""
        return self._keys_n, self._rows_n, self._buckets

    def find(self, keys_N: Keys) -> tuple[RowNumbers, npt.NDArray[np.bool_]]:
        """Rows u32 [F] of those keys that are here, in the order asked for, and which those are [N]."""
        if len(self._places) > _CROWDED:
            positions_N = self._keys_n.searchsorted(keys_N)
            found_N = self._keys_n.take(positions_N, mode="clip") == keys_N
            return self._rows_n.take(positions_N[found_N]), found_N
        starts_N = self._buckets.take((keys_N >> self._shift).view(np.int64))
        places_NP = starts_N[:, None] + self._places
        # Beyond the last key "wrap" goes on with the first, so no key is compared twice and none is found twice.
        equal_NP = self._keys_n.take(places_NP, mode="wrap") == keys_N[:, None]
        (hits_F,) = equal_NP.ravel().nonzero()
        rows_F = self._rows_n.take(places_NP.take(hits_F), mode="wrap")
        if len(rows_F) < len(keys_N):
            return rows_F, equal_NP.any(axis=1)
        found_N = np.empty(len(keys_N), np.bool_)
        found_N.fill(True)  # a tenth of what `any` takes
        return rows_F, found_N
