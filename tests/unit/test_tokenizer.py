"""Text → token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models

from twinbert.errors import BundleError
from twinbert.tokenizer import WordPiece, open_tokenizer


def test_texts_have_their_real_lengths(tiny_tokenizer: Path) -> None:
    """Padding and truncation that tokenizer.json has built in are gone: ids are [CLS], the pieces, [SEP]."""
    built_in = json.loads(tiny_tokenizer.read_bytes())
    assert built_in["padding"]
    assert built_in["truncation"]
    tokenizer = WordPiece(tiny_tokenizer, max_tokens=300)
    batch = tokenizer.encode(["Running shoes", "a", "pizza " * 200])
    vocabulary = built_in["model"]["vocab"]
    assert batch.ids[0].tolist() == [vocabulary[piece] for piece in ("[CLS]", "running", "shoes", "[SEP]")]
    assert batch.lengths.tolist() == [4, 3, 202]
    assert not batch.truncated.any()
    assert len(batch) == 3
    assert batch.ids[0].dtype == "int64"


def test_longer_texts_are_cut_and_marked(tiny_tokenizer: Path) -> None:
    """A text beyond the limit keeps its beginning and the closing [SEP]; one that just fits is not marked."""
    whole = WordPiece(tiny_tokenizer, max_tokens=64).encode(["pizza pizza csv csv", "pizza pizza csv csv list"])
    batch = WordPiece(tiny_tokenizer, max_tokens=6).encode(["pizza pizza csv csv", "pizza pizza csv csv list"])
    assert batch.truncated.tolist() == [False, True]
    assert batch.ids[0].tolist() == whole.ids[0].tolist()
    assert batch.ids[1].tolist() == [*whole.ids[1][:5].tolist(), whole.ids[1][-1]]


Variant = dict[int, tuple[WordPiece, tokenizers.Tokenizer]]
_ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
# What published tokenizers have, and all that could make a cut matter.
VARIANTS: dict[str, dict[str, Any]] = {
    "as BERT": {
        "added_tokens": [
            {"id": number, "content": content, **_ADDED}
            for number, content in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
        ]
    },
    "cased": {"normalizer": {"lowercase": False, "clean_text": False}},
    "accents kept": {"normalizer": {"strip_accents": False}},
    "Han characters within words": {"normalizer": {"handle_chinese_chars": False}},
    "no normaliser": {"normalizer": None},
    "punctuation within words": {"pre_tokenizer": {"type": "WhitespaceSplit"}},
    "added tokens of several words": {
        "added_tokens": [
            {"id": 5, "content": "a b,a b", **_ADDED, "lstrip": True},
            {"id": 6, "content": "a", **_ADDED, "single_word": True, "rstrip": True},
            {"id": 7, "content": "東!東!a", **_ADDED},
        ]
    },
    "added tokens looked for when normalised": {
        "added_tokens": [{"id": 5, "content": "a\tb\ta\tb", **_ADDED, "normalized": True}]
    },
}
# Pieces of words and of added tokens, and characters that normalisation moves, drops, splits or joins.
PIECES = (
    *" \t\n\r\x1c\0\u3000\u200d,!¡_-≠#[]abß東豈한İΣá\u0301\u0327\u302e",
    *("running", "shoes", "pizza", "Ab", "京都", "e\u0301", "x" * 101, "[SEP]", "[SE", "P]"),
    *("a b a b", "a b,a", "a b,a b", "東!東", "東!東!a", "a東", "ab,", "a,b,"),
)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """The tiny tokenizer, changed, for each of a few lengths beside what the library makes of it by itself."""
    content, changes = json.loads(tiny_tokenizer.read_bytes()), dict(VARIANTS[request.param])
    if changes.get("normalizer"):
        changes["normalizer"] = content["normalizer"] | changes["normalizer"]
    vocabulary = content["model"]["vocab"]
    vocabulary |= {piece: len(vocabulary) + number for number, piece in enumerate(("東", "##東", "##,", "##!"))}
    path = tmp_path_factory.mktemp("variant") / "tokenizer.json"
    path.write_text(json.dumps(content | changes))
    pairs = {}
    for max_tokens in (3, 4, 6, 9):
        whole = tokenizers.Tokenizer.from_file(str(path))
        whole.no_padding()
        whole.enable_truncation(max_tokens)
        pairs[max_tokens] = (WordPiece(path, max_tokens=max_tokens), whole)
    return pairs


@given(
    pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=40),
    max_tokens=st.sampled_from((3, 4, 6, 9)),
    beginning=st.integers(1, 20),
)
# One that each condition on where a text may be cut is needed for, in one variant or another.
@example(pieces=["a b a b"], max_tokens=3, beginning=6)
@example(pieces=["東!東!a"], max_tokens=3, beginning=3)
@example(pieces=["ab,ß"], max_tokens=3, beginning=3)
@example(pieces=["a東ß"], max_tokens=3, beginning=2)
@example(pieces=["read"], max_tokens=3, beginning=3)
@settings(max_examples=200)
def test_a_beginning_has_the_tokens_of_the_whole(
    variant: Variant, pieces: list[str], max_tokens: int, beginning: int
) -> None:
    """However little of a long text is read first, its ids and whether it is cut are those of reading it whole."""
    text = "".join(pieces)
    tokenizer, whole = variant[max_tokens]
    if tokenizer._ends is not None:
        tokenizer._beginning = beginning
    expected = whole.encode(text)
    batch = tokenizer.encode(["a", text, "pizza"])
    assert batch.ids[1].tolist() == expected.ids
    assert batch.truncated.tolist() == [False, bool(expected.overflowing), False]


def test_only_a_beginning_of_a_long_text_is_read(tiny_tokenizer: Path) -> None:
    """Of text in words, of punctuation and of Han characters no more is read than the tokens kept need."""
    tokenizer = WordPiece(tiny_tokenizer, max_tokens=16)
    read: list[int] = []

    class Counting:
        def encode_batch_fast(self, texts: list[str]) -> list[tokenizers.Encoding]:
            read.extend(map(len, texts))
            return whole.encode_batch_fast(texts)

    whole, tokenizer._tokenizer = tokenizer._tokenizer, Counting()
    for text in ("running shoes ", "{a:1},", "東京"):
        assert tokenizer.encode([text * 100_000]).truncated.all()
    assert max(read) <= 16 * 16
    assert len(read) == 3


def test_what_a_tokenizer_knows_of_itself(tiny_tokenizer: Path) -> None:
    """The digest is the file's sha256; the vocabulary bounds every id; capitals make no difference."""
    tokenizer = WordPiece(tiny_tokenizer, max_tokens=64)
    assert tokenizer.digest == hashlib.sha256(tiny_tokenizer.read_bytes()).hexdigest()
    assert tokenizer.vocabulary == 1 + max(json.loads(tiny_tokenizer.read_bytes())["model"]["vocab"].values())
    assert tokenizer.lowercase
    assert tokenizer.max_tokens == 64


def test_a_bundle_names_the_kind(tiny_tokenizer: Path) -> None:
    """A tokenizer is opened as the kind that the bundle names; a kind of a later version is refused with the known."""
    assert isinstance(open_tokenizer("wordpiece", tiny_tokenizer, max_tokens=8), WordPiece)
    with pytest.raises(
        BundleError, match=r"tokenizer\.json: is a 'letters' tokenizer, this version reads wordpiece, triletter"
    ):
        open_tokenizer("letters", tiny_tokenizer, max_tokens=8)


def test_threads_share_a_tokenizer(tiny_tokenizer: Path) -> None:
    """Several threads encode at once, each with its own result."""
    tokenizer = WordPiece(tiny_tokenizer, max_tokens=64)
    texts = ["the " * n + "list" for n in range(1, 40)]
    alone = [tokenizer.encode([text]).ids[0].tolist() for text in texts]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda text: tokenizer.encode([text]).ids[0].tolist(), texts * 20))
    assert together == alone * 20


def test_other_files_are_refused(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """A missing file, one that is no tokenizer, another kind, and one that adds no [CLS] and [SEP] are named."""
    path = tmp_path / "tokenizer.json"
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        WordPiece(path, max_tokens=8)
    path.write_text("{}")
    with pytest.raises(BundleError, match="cannot be read as a tokenizer"):
        WordPiece(path, max_tokens=8)
    tokenizers.Tokenizer(models.BPE()).save(str(path))
    with pytest.raises(BundleError, match="holds a BPE tokenizer; WordPiece is supported"):
        WordPiece(path, max_tokens=8)
    content = json.loads(tiny_tokenizer.read_bytes())
    path.write_text(json.dumps(content | {"post_processor": None}))
    with pytest.raises(BundleError, match=r"does not put a text between \[CLS\] and \[SEP\]"):
        WordPiece(path, max_tokens=8)


def _without_unknown(file: Any) -> None:
    del file["model"]["vocab"]["[UNK]"]
    file["added_tokens"] = [one for one in file["added_tokens"] if one["content"] != "[UNK]"]


def _without_vocabulary(file: Any) -> None:
    file["model"]["vocab"], file["added_tokens"] = {}, []


def _with_undefined_token(file: Any) -> None:
    file["post_processor"]["single"].append({"SpecialToken": {"id": "[NONE]", "type_id": 0}})


@pytest.mark.parametrize("change", [_without_unknown, _without_vocabulary, _with_undefined_token])
def test_a_tokenizer_that_cannot_encode_is_refused(
    change: Callable[[Any], None], tmp_path: Path, tiny_tokenizer: Path
) -> None:
    """It is found when it is opened: the library reads such files, and breaks, or panics, with the first text."""
    file = json.loads(tiny_tokenizer.read_bytes())
    change(file)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file))
    with pytest.raises(BundleError, match=r"tokenizer\.json: "):
        WordPiece(path, max_tokens=16)
