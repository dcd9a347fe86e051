"""Text → token ids."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
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
