"""Tri-letter tokenizers against the rules written out letter by letter."""

from __future__ import annotations

import hashlib
import itertools
import json
import string
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinbert.errors import BundleError, UsageError
from twinbert.samples import DOCUMENTS, QUERIES
from twinbert.tokenizer import (
    TokenBatch,
    TriLetter,
    WordPiece,
    open_tokenizer,
    open_tokenizer_file,
    save_triletter,
)
from twinbert.tokenizer.triletter import CLS, RESERVED, TRIGRAMS

LETTERS = string.digits + string.ascii_lowercase


@pytest.fixture(scope="module")
def ascii_(tmp_path_factory: pytest.TempPathFactory) -> TriLetter:
    """The published code's: 12 words of 20 trigrams."""
    path = tmp_path_factory.mktemp("ascii") / "tokenizer.json"
    save_triletter(path)
    return TriLetter(path, max_tokens=12)


@pytest.fixture(scope="module")
def unicode_(tmp_path_factory: pytest.TempPathFactory) -> TriLetter:
    """Letters of every script, hashed."""
    path = tmp_path_factory.mktemp("unicode") / "tokenizer.json"
    save_triletter(path, letters="unicode")
    return TriLetter(path, max_tokens=12)


def made(folder: Path, max_tokens: int = 12, **parameters: Any) -> TriLetter:
    save_triletter(folder / "tokenizer.json", **parameters)
    return TriLetter(folder / "tokenizer.json", max_tokens=max_tokens)


def trigrams_of(text: str, *, unicode: bool = False) -> list[list[str]]:
    """The rules, slowly: the trigrams of each of the first 12 words, at most 20 of a word."""
    if unicode:
        for _ in range(2):
            text = unicodedata.normalize("NFKC", text.casefold())
    words, word = [], ""
    for character in f"{text.lower()} ":
        if character.isspace():
            words += [word] if word else []
            word = ""
        elif unicodedata.category(character)[0] in "LMN" if unicode else character in LETTERS:
            word += character
    marked = [f"#{word}#" for word in words[:12]]
    return [[word[start : start + 3] for start in range(len(word) - 2)][:20] for word in marked] or [[]]


def enumerated(trigram: str) -> int:
    """The id of an ASCII trigram: 8 + (36x + y)·37 + z."""
    x, y, z = (f"{LETTERS}#".index(letter) for letter in trigram)
    return 8 + (36 * x + y) * 37 + z


def hashed(trigram: str) -> int:
    """The id of any trigram: its code points, 21 bits each, through splitmix64's finaliser."""
    x, y, z = map(ord, trigram)
    mixed = x << 42 | y << 21 | z
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> shift) * factor % 2**64
    return 8 + (mixed ^ mixed >> 31) % 49_284


def as_lists(batch: TokenBatch) -> list[list[list[int]]]:
    """The ids of each word of each text, without what fills up."""
    return [[[id_ for id_ in word if id_] for word in text.tolist()] for text in batch.ids]


def test_a_word_is_its_trigrams_between_number_signs(ascii_: TriLetter) -> None:
    """`Hello, W3!` is #he hel ell llo lo# and #w3 w3#, by their numbers in the enumeration; 0 fills up."""
    (ids_LT,) = ascii_.encode(["Hello, W3!"]).ids
    # (36·36 + 17)·37 + 14 + 8 is #he: # is 36, h 17, e 14.
    assert ids_LT.tolist() == [[48603, 23191, 19454, 28781, 28904], [49147, 42779, 0, 0, 0]]
    assert ids_LT.dtype == np.int64


def test_every_trigram_has_an_id_and_every_id_a_trigram(tmp_path: Path) -> None:
    """36³ + 2·36² + 36 trigrams fill the ids from 8 to 49,291 without a gap."""
    words = ["".join(letters) for length in (1, 2, 3) for letters in itertools.product(LETTERS, repeat=length)]
    tokenizer = made(tmp_path, max_tokens=len(words))
    (ids_LT,) = tokenizer.encode([" ".join(words)]).ids
    assert tokenizer.vocabulary == 49_292 == RESERVED + 36**3 + 2 * 36**2 + 36 == RESERVED + TRIGRAMS
    assert set(ids_LT.ravel().tolist()) == {0, *range(8, 49_292)}
    trigrams = {trigram for word in words for trigram in trigrams_of(word)[0]}
    assert {enumerated(trigram) for trigram in trigrams} == set(range(8, 49_292))
    assert len(trigrams) == TRIGRAMS


TEXTS = (
    *QUERIES,
    *DOCUMENTS,
    "Behr Premium DECK-OVER 1/2 in. wood & concrete",
    "a\tb\nc\u00a0d",
    "#hash#tag# _under_score_",
    "İstanbul Kelvin ﬁne ½ Ⅷ",
    "हिन्दी में खोज",
    "ﺳﻼﻡ ｆｕｌｌ　ｗｉｄｔｈ",
    "𝕞𝕒𝕥𝕙 🧪 x",
    "\udc80 lone",
)


def test_ids_are_those_of_the_rules(ascii_: TriLetter, unicode_: TriLetter) -> None:
    """Both kinds give what the rules give letter by letter, alone and among others, on texts of many kinds."""
    expected = [[[enumerated(trigram) for trigram in word] for word in trigrams_of(text)] for text in TEXTS]
    assert as_lists(ascii_.encode(TEXTS)) == expected
    assert [as_lists(ascii_.encode([text]))[0] for text in TEXTS] == expected
    expected = [[[hashed(trigram) for trigram in word] for word in trigrams_of(text, unicode=True)] for text in TEXTS]
    assert as_lists(unicode_.encode(TEXTS)) == expected
    assert [as_lists(unicode_.encode([text]))[0] for text in TEXTS] == expected


@given(st.lists(st.text(), max_size=4))
def test_any_text_has_the_ids_of_the_rules(ascii_: TriLetter, unicode_: TriLetter, texts: list[str]) -> None:
    """No text breaks either kind; every text has a word, and every id is below the vocabulary."""
    for tokenizer, unicode, number in ((ascii_, False, enumerated), (unicode_, True, hashed)):
        batch = tokenizer.encode(texts)
        assert as_lists(batch) == [
            [[*map(number, word)] for word in trigrams_of(text, unicode=unicode)] for text in texts
        ]
        assert all(1 <= len(ids) <= 12 and 1 <= ids.shape[1] <= 20 and ids.max() < 49_292 for ids in batch.ids)


def test_hashes_are_the_same_everywhere(unicode_: TriLetter) -> None:
    """Ids of the hashed kind are kept, since stored embeddings depend on them."""
    assert unicode_.encode(["Größe 東京"]).ids[0].tolist() == [
        [36190, 34376, 407, 36417, 37873, 22305],
        [44001, 37738, 0, 0, 0, 0],
    ]


def test_what_is_one_text_to_readers_is_one_to_unicode(unicode_: TriLetter) -> None:
    """Capitals, full-width, ligatures and composed letters make no difference; letters of other scripts stay."""
    for one, other in (
        ("STRASSE", "straße"),
        ("ｃａｆé", "cafe\u0301"),
        ("ﬁre", "FIRE"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ):
        assert as_lists(unicode_.encode([one])) == as_lists(unicode_.encode([other]))
    tokyo, osaka, hindi, without_vowels = unicode_.encode(["東京", "大阪", "की", "क"]).ids
    assert tokyo.tolist() != osaka.tolist()
    assert hindi.tolist() != without_vowels.tolist()


def test_more_than_a_tower_reads_is_cut_and_marked(ascii_: TriLetter) -> None:
    """The first 12 words and of each the first 20 trigrams are kept; only what lost something is marked."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = ["a " * 12, "a " * 13, letters[:20], letters[:21], f"! {letters} !"]
    batch = ascii_.encode(texts)
    assert batch.truncated.tolist() == [False, True, False, True, True]
    assert batch.lengths.tolist() == [12, 12, 1, 1, 1]
    twenty = [enumerated(f"#{letters}"[start : start + 3]) for start in range(20)]
    assert batch.ids[4].tolist() == batch.ids[3].tolist() == [twenty]
    assert batch.ids[2].tolist() == [[*twenty[:19], enumerated("st#")]]


PIECES = (*" \t\n\u3000\u00a0\u0308\u0301\u0345¨ΣσİſßǰA-_.한", "wi-fi", "ab", "क्षि", "ﬁ", "e\u0301", "Α\u0301Σ")


@given(pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=40), beginning=st.integers(1, 12))
def test_a_beginning_has_the_words_of_the_whole(
    ascii_: TriLetter, unicode_: TriLetter, pieces: list[str], beginning: int
) -> None:
    """However little of a long text is read first, the words kept and whether it is cut are those of the whole text."""
    text = "".join(pieces)
    for tokenizer in (ascii_, unicode_):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizer, "_max_words", 2)
            patch.setattr(tokenizer, "_beginning", beginning)
            words, whole = tokenizer._first_words(text), tokenizer._words(text)
        assert words[:2] == whole[:2]
        assert (len(words) > 2) == (len(whole) > 2)


def test_only_a_beginning_of_a_long_text_is_read(ascii_: TriLetter, unicode_: TriLetter) -> None:
    """Of many words no more are made than are needed to know that there are more than are kept."""
    for tokenizer in (ascii_, unicode_):
        assert 12 < len(tokenizer._first_words("word " * 100_000)) < 50


def test_a_text_without_a_letter_is_one_unknown_word(ascii_: TriLetter, unicode_: TriLetter) -> None:
    """`???` and, for ASCII, 東京 are a word of id 0, which a tower can embed, and lose nothing that counts as cut."""
    batch = ascii_.encode(["???", "東京 ラーメン", "a"])
    assert [ids.tolist() for ids in batch.ids] == [[[0]], [[0]], [[enumerated("#a#")]]]
    assert not batch.truncated.any()
    assert unicode_.encode(["?!"]).ids[0].tolist() == [[0]]


def test_punctuation_is_dropped_or_splits(tmp_path: Path) -> None:
    """By default `wi-fi` is one word, as in the published code; otherwise it is two."""
    together = as_lists(made(tmp_path).encode(["wi-fi 1/2"]))
    assert together == as_lists(made(tmp_path).encode(["wifi 12"]))
    apart = made(tmp_path, punctuation="split", letters="unicode")
    assert as_lists(apart.encode(["wi-fi 1/2"])) == as_lists(apart.encode(["wi fi 1 2"]))


def test_cls_is_a_word_of_its_own(tmp_path: Path) -> None:
    """With [CLS] every text starts with id 1, which counts as a word; even the unknown word follows it."""
    tokenizer = made(tmp_path, max_tokens=3, cls=True)
    batch = tokenizer.encode(["ab c d", "?"])
    assert as_lists(batch) == [[[CLS], [enumerated("#ab"), enumerated("ab#")], [enumerated("#c#")]], [[CLS], []]]
    assert batch.truncated.tolist() == [True, False]
    with pytest.raises(UsageError, match="max_tokens is 1; a text is at least 2 tokens"):
        made(tmp_path, max_tokens=1, cls=True)


def test_a_batch_is_padded_to_its_largest(ascii_: TriLetter) -> None:
    """Ids are filled up with 0 in both directions; the mask has a 1 for every word, the unknown one too."""
    batch = ascii_.encode(["abc de", "?", "wood stain for decks"])
    input_ids, attention_mask = batch.padded()
    assert input_ids.shape == (3, 4, 5)
    assert attention_mask.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert as_lists(TokenBatch([*input_ids], batch.truncated)) == [
        [[enumerated(trigram) for trigram in word] for word in words]
        for words in ([*trigrams_of("abc de"), [], []], [[]] * 4, trigrams_of("wood stain for decks"))
    ]
    assert batch.take([2, 0]).lengths.tolist() == [4, 2]


def test_nothing_is_tokenised_to_nothing(ascii_: TriLetter, tmp_path: Path) -> None:
    """No texts give no ids."""
    assert len(ascii_.encode([])) == len(made(tmp_path, cls=True).encode([])) == 0


def test_what_a_tokenizer_knows_of_itself(tmp_path: Path) -> None:
    """The digest is the file's sha256, equal for equal parameters; other parameters are another tokenizer."""
    digests = set()
    for letters, punctuation, max_trigrams, cls in itertools.product(
        ("ascii", "unicode"), ("drop", "split"), (3, 20), (False, True)
    ):
        parameters = {"letters": letters, "punctuation": punctuation, "max_trigrams": max_trigrams, "cls": cls}
        tokenizer = made(tmp_path, max_tokens=9, **parameters)
        assert tokenizer.digest == hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
        assert tokenizer.digest == made(tmp_path, **parameters).digest
        assert tokenizer.description == {"lowercase": True, **parameters}
        assert (tokenizer.kind, tokenizer.max_tokens, tokenizer.starts_with_cls) == ("triletter", 9, cls)
        assert tokenizer.encode(["abcdef"]).ids[0].shape[1] == min(6, max_trigrams)
        digests.add(tokenizer.digest)
    assert len(digests) == 16


def test_a_file_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    """JSON deeper than can be read is an error that names the file, whichever kind was expected."""
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    for read in (open_tokenizer_file, TriLetter, WordPiece):
        with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
            read(tmp_path / "tokenizer.json", max_tokens=8)


def test_a_tokenizer_is_opened_by_its_file(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """tokenizer.json says which kind it is, where no bundle does; what is of neither is refused."""
    save_triletter(tmp_path / "tokenizer.json")
    assert isinstance(open_tokenizer("triletter", tmp_path / "tokenizer.json", max_tokens=12), TriLetter)
    with pytest.raises(BundleError, match="is no tri-letter tokenizer of format 1"):
        open_tokenizer("triletter", tiny_tokenizer, max_tokens=12)
    assert isinstance(open_tokenizer_file(tmp_path / "tokenizer.json", max_tokens=12), TriLetter)
    assert isinstance(open_tokenizer_file(tiny_tokenizer, max_tokens=12), WordPiece)
    for content in ("{", "[]", "{}"):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
            open_tokenizer_file(tmp_path / "tokenizer.json", max_tokens=12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "is no tri-letter tokenizer of format 1"),
        ({"letters": "greek"}, "letters is 'greek'; there are ascii and unicode"),
        ({"punctuation": None}, "punctuation is None; there are drop and split"),
        ({"max_trigrams": 0}, "max_trigrams is 0; it must be a whole number above 0"),
        ({"cls": "no"}, "cls is 'no'; there are False and True"),
        ({"stemming": True}, "has stemming, which this version does not know"),
    ],
)
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """A parameter that is wrong or unknown is named, when a file is read and when one is written."""
    path = tmp_path / "tokenizer.json"
    save_triletter(path)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    with pytest.raises(BundleError, match=words):
        TriLetter(path, max_tokens=12)
    if change.keys() <= {"letters", "punctuation", "max_trigrams", "cls"}:
        with pytest.raises(UsageError, match=words):
            save_triletter(path, **change)
    with pytest.raises(BundleError, match="cannot be read as a tokenizer"):
        TriLetter(tmp_path / "absent.json", max_tokens=12)
