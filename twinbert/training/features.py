"""How a query's words stand in a document, in numbers: what the lexical part of a teacher reads.

Features in the manner of learning to rank (Liu, Foundations and Trends in IR 3(3), 2009, 2.3), of the two texts alone:
no counts of a corpus have to be kept with them. Words are what is left between white space and punctuation, but for a
period within, as in 1.5; where a language writes none, the features say little.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from twinbert.text import folded, is_mark

VERSION = 1
"""Of what the features mean: another one for any change."""
FEATURES = (
    *("query words", "document words", "query letters", "document letters"),
    *("words found", "share found", "share found by prefix", "first found", "last found", "last found by prefix"),
    *("letters not found", "numbers", "share of numbers found"),
    *("likeness", "least likeness", "likeness of first", "likeness of last"),
    *("ends equal", "likeness of ends", "words before the first", "place of the last"),
    *("found run together", "phrase", "share within"),
)
"""What is known of a pair, in the order of `features`."""

_PREFIX = 4  # letters: most of a word without its ending
_SEPARATOR = re.compile(r"(?!(?<=[^\W_])\.(?=[^\W_]))(?:[^\w\s]|_)")


def features(query: str, document: str, *, max_words: int) -> list[float]:
    """What `FEATURES` name, of one pair; of texts without a word there is nothing to find.

    Args:
        query: a text.
        document: another.
        max_words: of either text that are looked at, from its beginning.
    """
    asked, there = _words(query, max_words), _words(document, max_words)
    sizes = [len(asked), len(there), len(query), len(document)]
    if not asked or not there:
        return [float(size) for size in sizes] + [0.0] * (len(FEATURES) - len(sizes))
    known, prefixes, joined = set(there), {word[:_PREFIX] for word in there}, "".join(there)
    found = [word in known for word in asked]
    begun = [word[:_PREFIX] in prefixes for word in asked]
    alike = [1.0 if word in known else max(_likeness(word, other) for other in known) for word in asked]
    numbers = [word in known for word in asked if any(letter.isdigit() for letter in word)]
    places = [place for place, word in enumerate(there) if word in asked] or [len(there)]
    values = [
        *(sum(found), _mean(found), _mean(begun), found[0], found[-1], begun[-1]),
        sum(len(word) for word, is_there in zip(asked, found, strict=True) if not is_there),
        *(len(numbers), _mean(numbers)),
        *(_mean(alike), min(alike), alike[0], alike[-1]),
        *(asked[-1] == there[-1], _likeness(asked[-1], there[-1])),
        *(places[0], (places[-1] + 1) / len(there) if any(found) else 0),
        "".join(asked) in joined,
        f" {' '.join(asked)} " in f" {' '.join(there)} ",
        _mean([word in joined for word in asked]),
    ]
    return [float(value) for value in (*sizes, *values)]


def _words(text: str, most: int) -> list[str]:
    """The first words of a text, in one form whatever its case and Unicode form."""
    return _SEPARATOR.sub(lambda one: one[0] if is_mark(one[0]) else " ", folded(text)).split()[:most]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@lru_cache(1 << 18)  # most words of a catalogue come again and again; some 60 MB
def _likeness(word: str, other: str) -> float:
    """Dice's coefficient of two words' letter pairs, their ends among these: 1 is the same word, as a rule."""
    ours, theirs = _letter_pairs(word), _letter_pairs(other)
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))


@lru_cache(1 << 16)
def _letter_pairs(word: str) -> frozenset[str]:
    ended = f" {word} "
    return frozenset(ended[at : at + 2] for at in range(len(ended) - 1))
