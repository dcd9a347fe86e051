"""WordPiece, from the tokenizer.json of a Hugging Face BERT."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from twinbert.errors import BundleError
from twinbert.tokenizer.interface import TokenBatch


class WordPiece:
    """The tokenizer of a Hugging Face BERT. Longer texts are cut so that the closing [SEP] stays.

    Encoding releases the GIL, and the library spreads a batch over the cores with threads of its own.

    Args:
        path: tokenizer.json. What it says of padding and truncation is replaced.
        max_tokens: tokens that a text has at most, special tokens included.

    Raises:
        BundleError: the file cannot be read, or is of another kind.
    """

    kind = "wordpiece"
    starts_with_cls = True

    def __init__(self, path: Path, *, max_tokens: int) -> None:
        try:
            content = path.read_bytes()
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: cannot be read as a tokenizer: {error}") from error
        if not isinstance(self._tokenizer.model, tokenizers.models.WordPiece):
            kind = type(self._tokenizer.model).__name__
            raise BundleError(f"{path}: holds a {kind} tokenizer; WordPiece is supported")
        if self._tokenizer.num_special_tokens_to_add(is_pair=False) != 2:
            raise BundleError(f"{path}: does not put a text between [CLS] and [SEP]; its post_processor has to")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        normalizer = self._tokenizer.normalizer
        self.digest = hashlib.sha256(content).hexdigest()
        self.max_tokens = max_tokens
        self.lowercase = normalizer is not None and normalizer.normalize_str("A") == "a"
        self.description = {"lowercase": self.lowercase}
        self.vocabulary = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Token ids of texts: [CLS], the text's pieces, [SEP]."""
        encodings = self._tokenizer.encode_batch_fast(texts)
        return TokenBatch(
            ids=[np.array(encoding.ids, dtype=np.int64) for encoding in encodings],
            truncated=np.fromiter((bool(encoding.overflowing) for encoding in encodings), np.bool_, len(encodings)),
        )
