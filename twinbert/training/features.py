"""How a query's words stand in a document, in numbers: what the lexical part of a teacher reads.

Features in the manner of learning to rank (Liu, Foundations and Trends in IR 3(3), 2009, 2.3), of the two texts alone:
no counts of a corpus have to be kept with them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

FEATURES = (
    *("query words", "document words", "query letters", "document letters"),
    *("words found", "share found", "share found by stem", "first found", "last found", "last found by stem"),
    *("letters not found", "numbers", "share of numbers found"),
    *("likeness", "least likeness", "likeness of first", "likeness of last"),
    *("ends alike", "likeness of ends", "first place", "last place"),
    *("compound", "phrase", "share within"),
)
"""What is known of a pair, in the order of `features`."""

_STEM = 4  # letters
_WORD = re.compile(r"[^\W_]+(?:\.[^\W_]+)*")  # 1.5 is one


def features(query: str, document: str) -> list[float]:
    """What `FEATURES` name, of one pair; of texts without a word there is nothing to find."""
    asked, there = _words(query), _words(document)
    sizes = [len(asked), len(there), len(query), len(document)]
    if not asked or not there:
        return [float(size) for size in sizes] + [0.0] * (len(FEATURES) - len(sizes))
    known, stems, joined = set(there), {word[:_STEM] for word in there}, "".join(there)
    found = [word in known for word in asked]
    stemmed = [word[:_STEM] in stems for word in asked]
    alike = [max(_likeness(word, other) for other in there) for word in asked]
    numbers = [word in known for word in asked if any(letter.isdigit() for letter in word)]
    places = [place for place, word in enumerate(there) if word in asked]
    values = [
        *(sum(found), _mean(found), _mean(stemmed), found[0], found[-1], stemmed[-1]),
        sum(len(word) for word, is_there in zip(asked, found, strict=True) if not is_there),
        *(len(numbers), _mean(numbers)),
        *(_mean(alike), min(alike), alike[0], alike[-1]),
        *(asked[-1] == there[-1], _likeness(asked[-1], there[-1])),
        *((places[0], (places[-1] + 1) / len(there)) if places else (len(there), 0)),
        "".join(asked) in joined,
        f" {' '.join(asked)} " in f" {' '.join(there)} ",
        _mean([word in joined for word in asked]),
    ]
    return [float(value) for value in (*sizes, *values)]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@lru_cache(1 << 20)  # of some ten words a text most come again
def _likeness(word: str, other: str) -> float:
    """Dice's coefficient of two words' letter pairs, their ends among these: 1 is the same word, as a rule."""
    ours, theirs = _letter_pairs(word), _letter_pairs(other)
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))


@lru_cache(1 << 16)
def _letter_pairs(word: str) -> frozenset[str]:
    ended = f" {word} "
    return frozenset(ended[at : at + 2] for at in range(len(ended) - 1))
