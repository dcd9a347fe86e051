"""Tri-letter: a word is the trigrams of `#word#`, so a text has as few tokens as words (TwinBERT; before it, DSSM).

Shapes: W words of all texts, L words of a text, T trigrams of a word.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from twinbert.errors import BundleError, UsageError
from twinbert.text import folded, is_mark
from twinbert.tokenizer.interface import CHARACTERS, Ints, TokenBatch

Letters = Literal["ascii", "unicode"]
Punctuation = Literal["drop", "split"]

RESERVED = 8
"""Ids below belong to no trigram: 0 is padding and the unknown word, 1 is [CLS], 2 to 7 are unused."""
CLS = 1
TRIGRAMS = 37 * 36 * 37
"""49,284 = 36³ + 2·36² + 36: first and last of a trigram are one of 36 letters or #, its middle one of 36 letters."""

_FORMAT = 1
_CODES = np.zeros(128, dtype=np.int64)  # by ASCII
_CODES[[ord(letter) for letter in "0123456789abcdefghijklmnopqrstuvwxyz#"]] = np.arange(37)


def save_triletter(
    path: Path,
    *,
    letters: Letters = "ascii",
    punctuation: Punctuation = "drop",
    max_trigrams: int = 20,
    cls: bool = False,
) -> None:
    """Writes a tri-letter tokenizer's file; equal parameters give equal bytes. See `TriLetter`.

    The defaults are those of the published code (microsoft/DeepGNN), but that it drops tabs and newlines too, which
    here separate words as spaces do.

    Args:
        path: the file, by custom tokenizer.json.
        letters: `ascii`: a–z and 0–9, enumerated; `unicode`: letters of every script, hashed into as many ids.
        punctuation: what becomes of characters that are neither letters nor white space: `drop` ("wi-fi" is "wifi"),
            or `split` words ("wi", "fi").
        max_trigrams: T, trigrams that a word has at most.
        cls: whether every text starts with [CLS], which `cls` pooling needs.

    Raises:
        UsageError: a parameter is none of those.
    """
    parameters = {"letters": letters, "punctuation": punctuation, "max_trigrams": max_trigrams, "cls": cls}
    if problem := _problem(parameters):
        raise UsageError(f"tri-letter tokenizer: {problem}")
    content = {"format": _FORMAT, "kind": TriLetter.kind, **parameters}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class TriLetter:
    """Words as the ids of their trigrams.

    A text becomes lower-case and keeps its letters and white space, which separates words; its first `max_tokens`
    words are kept, and of each the first `max_trigrams` trigrams of `#word#`. A text without a letter is one unknown
    word, of id 0 alone, whose embedding is that of its position.

    `ascii` letters are a–z and 0–9. The trigram xyz has the id 8 + (36x + y)·37 + z, where a letter counts 0 to 35 in
    the order 0–9, a–z, and # counts 36: every trigram has one id, and every id from 8 one trigram.

    `unicode` text is NFKC-normalised and case-folded, and keeps letters, numbers and marks of every script. A trigram's
    three code points, 21 bits each, are mixed by splitmix64 and taken modulo 49,284, plus 8: about 1 in 49,284 pairs
    of trigrams share an id. Unicode guarantees that assigned characters keep their forms, so that the version of Python
    makes no difference to them.

    Args:
        path: what `save_triletter` wrote.
        max_tokens: words that a text has at most, [CLS] included.

    Raises:
        BundleError: the file cannot be read, or is of another kind.
        UsageError: `max_tokens` leaves no room for a word.
    """

    kind = "triletter"
    vocabulary = RESERVED + TRIGRAMS

    def __init__(self, path: Path, *, max_tokens: int) -> None:
        try:
            content = path.read_bytes()
            stated = json.loads(content)
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path}: cannot be read as a tokenizer: {error}") from error
        if not isinstance(stated, dict) or (stated.pop("kind", None), stated.pop("format", None)) != (
            self.kind,
            _FORMAT,
        ):
            raise BundleError(f"{path}: is no tri-letter tokenizer of format {_FORMAT}; upgrade twinbert")
        if problem := _problem(stated):
            raise BundleError(f"{path}: {problem}; copy or export the bundle again")
        if max_tokens < 1 + stated["cls"]:
            raise UsageError(f"max_tokens is {max_tokens}; a text is at least {1 + stated['cls']} tokens of {path}")
        self.digest = hashlib.sha256(content).hexdigest()
        self.max_tokens = max_tokens
        self.starts_with_cls: bool = stated["cls"]
        self.description = {"lowercase": True, **stated}
        self._beginning = CHARACTERS * max_tokens
        self._max_words = max_tokens - self.starts_with_cls
        self._max_trigrams: int = stated["max_trigrams"]
        self._unicode = stated["letters"] == "unicode"
        self._replacement = "" if stated["punctuation"] == "drop" else " "

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Ids [L, T] of texts, T being the most that a word of the text has."""
        words_W: list[str] = []
        ends, truncated, widths = [], [], []
        for text in texts:
            words = self._first_words(text)
            kept = words[: self._max_words] or [""]
            longest = max(map(len, kept))
            words_W += ["", *kept] if self.starts_with_cls else kept
            ends.append(len(words_W))
            truncated.append(len(words) > len(kept) or longest > self._max_trigrams)
            widths.append(min(max(longest, 1), self._max_trigrams))
        ids_WT = self._ids(words_W, max(widths, default=1))
        starts = [0, *ends][:-1]
        if self.starts_with_cls:
            ids_WT[starts, 0] = CLS
        ids = [ids_WT[start:end, :width] for start, end, width in zip(starts, ends, widths, strict=True)]
        return TokenBatch(ids, np.array(truncated, dtype=np.bool_))

    def _first_words(self, text: str) -> list[str]:
        """The words of a text, or of a beginning of it that has more than are kept."""
        characters = self._beginning
        while characters < len(text):
            # A space ends a word whatever the letters are, and no character's case or normal form depends on what is
            # on its other side.
            words = self._words(text[: text.rfind(" ", 0, characters) + 1])
            if len(words) > self._max_words:
                return words
            characters *= 8  # a text that has to be read whole takes a seventh longer
        return self._words(text)

    def _words(self, text: str) -> list[str]:
        if self._unicode:
            return re.sub(r"[^\w\s]|_", self._mark_or_replacement, folded(text)).split()
        return re.sub(r"[^a-z0-9\s]", self._replacement, text.lower()).split()

    def _mark_or_replacement(self, character: re.Match[str]) -> str:
        return character[0] if is_mark(character[0]) else self._replacement

    def _ids(self, words_W: Sequence[str], width: int) -> Ints:
        """Ids [W, T = width] of words, 0 after their last; of all words at once, as windows over `#one#two#three#`."""
        joined = f"#{'#'.join(words_W)}##"  # one more, or an unknown word alone would have no window to be put to 0
        if self._unicode:
            ids = _hashed(np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64))
        else:
            codes = _CODES[np.frombuffer(joined.encode("ascii"), dtype=np.uint8)]
            ids = (36 * codes[:-2] + codes[1:-1]) * 37 + codes[2:] + RESERVED
        # Where each word's first window is, and one that would follow the last word.
        starts = np.fromiter(accumulate((len(word) + 1 for word in words_W), initial=0), np.int64, len(words_W) + 1)
        windows_WT = starts[:-1, None] + np.arange(width)
        # What is read beyond a word's end, or clipped at the text's, is put to 0.
        ids_WT: Ints = ids.take(windows_WT, mode="clip") * (windows_WT < starts[1:, None] - 1)
        return ids_WT


def _hashed(points: npt.NDArray[np.uint64]) -> Ints:
    """Ids of the trigrams of a string of code points: splitmix64's finaliser (Steele et al., OOPSLA 2014)."""
    mixed = points[:-2] << np.uint64(42) | points[1:-1] << np.uint64(21) | points[2:]
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed % np.uint64(TRIGRAMS)).astype(np.int64) + RESERVED


def _problem(parameters: dict[str, Any]) -> str | None:
    """What is wrong with a tokenizer's parameters, if anything."""
    wanted = {"letters": get_args(Letters), "punctuation": get_args(Punctuation), "cls": (False, True)}
    for name, choices in wanted.items():
        if parameters.get(name) not in choices:
            return f"{name} is {parameters.get(name)!r}; there are {' and '.join(map(str, choices))}"
    most = parameters.get("max_trigrams")
    if not isinstance(most, int) or most < 1:
        return f"max_trigrams is {most!r}; it must be a whole number above 0"
    if surplus := sorted(parameters.keys() - wanted.keys() - {"max_trigrams"}):
        return f"has {surplus[0]}, which this version does not know"
    return None
