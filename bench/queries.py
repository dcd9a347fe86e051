"""Queries: phrases cut out of documents, as long as what people type into a product search.

They are not real ones, of which none may be kept here; what a query costs to encode depends on its length alone.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

# Quantile, words, and MiniLM's tokens with [CLS] and [SEP]. Median, p95 and p99: measured on 11,795 real product-search
# queries, see docs/decisions/0020. The ends are ours, and straight lines lead from one to the next.
_QUANTILES = ((0.0, 1, 3), (0.5, 4, 7), (0.95, 6, 12), (0.99, 8, 15), (1.0, 10, 19))
_SHOWN = (50, 95, 99)

Length = tuple[int, int]
"""A query's words and tokens."""

Count = Callable[[Sequence[str]], Sequence[int]]
"""Tokens of each of some texts."""


def lengths(count: int) -> list[Length]:
    """Lengths of so many queries, from the shortest on: those of more words have more tokens."""
    quantiles, words, tokens = zip(*_QUANTILES, strict=True)
    places = (np.arange(count) + 0.5) / count
    return [
        (round(some), round(pieces))
        for some, pieces in zip(
            np.interp(places, quantiles, words).tolist(), np.interp(places, quantiles, tokens).tolist(), strict=True
        )
    ]


def phrases(texts: Iterable[str], wanted: Iterable[Length], tokens: Count, *, seed: int = 0) -> list[str]:
    """Different runs of words of texts, in any order, one of each length that is wanted.

    Args:
        texts: what they are cut out of, in lower case and without what is neither letter nor digit.
        wanted: lengths.
        tokens: counts a phrase's.
        seed: of what is drawn.

    Raises:
        ValueError: the texts have too few of some length.
    """
    numbers, drawn = Counter(wanted), random.Random(seed)
    split = [re.findall(r"[a-z0-9]+", text.lower()) for text in texts]
    vocabulary = sorted(set(itertools.chain(*split)))
    special, *counts = tokens(["", *vocabulary])
    pieces = {word: count - special for word, count in zip(vocabulary, counts, strict=True)}
    cut: dict[Length, dict[str, None]] = {length: {} for length in numbers}
    for words, most in itertools.product(split, sorted({most for most, _ in numbers})):
        for start in range(len(words) - most + 1):
            run = words[start : start + most]
            length = (most, special + sum(pieces[word] for word in run))
            if length in cut:
                cut[length][" ".join(run)] = None
    found = [phrase for length, number in numbers.items() for phrase in drawn.sample([*cut[length]], number)]
    drawn.shuffle(found)
    return found


def described(queries: Sequence[str], tokens: Count) -> str:
    """How long queries are, in words."""
    words = np.percentile([len(query.split()) for query in queries], _SHOWN)
    pieces = np.percentile(tokens(queries), _SHOWN)
    ours = (" · ".join(f"{value:.0f}" for value in values) for values in (words, pieces))
    return "queries of {} words, {} MiniLM tokens (median · p95 · p99)".format(*ours)
