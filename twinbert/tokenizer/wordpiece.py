"""WordPiece, from the tokenizer.json of a Hugging Face BERT."""

from __future__ import annotations

import hashlib
import re
import string
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from twinbert.errors import BundleError
from twinbert.tokenizer.interface import CHARACTERS, TokenBatch


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
        _require_encodes(self._tokenizer, path)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        normalizer = self._tokenizer.normalizer
        self._ends = _word_ends(self._tokenizer)
        self._beginning = sys.maxsize if self._ends is None else CHARACTERS * max_tokens
        self.digest = hashlib.sha256(content).hexdigest()
        self.max_tokens = max_tokens
        self.lowercase = normalizer is not None and normalizer.normalize_str("A") == "a"
        self.description = {"lowercase": self.lowercase}
        self.vocabulary = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Token ids of texts: [CLS], the text's pieces, [SEP].

        Of a long text only a beginning is read, if that has more tokens than are kept.
        """
        beginning = self._beginning
        encodings = self._tokenizer.encode_batch_fast([self._cut(text, beginning) for text in texts])
        while unsure := [n for n, text in enumerate(texts) if len(text) > beginning and not encodings[n].overflowing]:
            beginning *= 8  # a text that has to be read whole takes a seventh longer
            more = self._tokenizer.encode_batch_fast([self._cut(texts[n], beginning) for n in unsure])
            for n, encoding in zip(unsure, more, strict=True):
                encodings[n] = encoding
        return TokenBatch(
            ids=[np.array(encoding.ids, dtype=np.int64) for encoding in encodings],
            truncated=np.fromiter((bool(encoding.overflowing) for encoding in encodings), np.bool_, len(encodings)),
        )

    def _cut(self, text: str, characters: int) -> str:
        """A text's beginning up to the last place among its first `characters` where a word surely ends, if any."""
        if len(text) <= characters:
            return text
        assert self._ends is not None
        ends = self._ends.match(text, 0, characters)
        return ends[0] if ends else ""


def _require_encodes(tokenizer: tokenizers.Tokenizer, path: Path) -> None:
    """Raises BundleError for a file that the library reads and then cannot encode with."""
    unknown = tokenizer.model.unk_token
    if tokenizer.model.token_to_id(unknown) is None:
        raise BundleError(f"{path}: its vocabulary lacks {unknown}, which stands for words that it does not know")
    try:
        tokenizer.encode("a")
    except BaseException as error:  # the library's own panics are no Exception, and would end what nothing else ends
        if isinstance(error, KeyboardInterrupt):
            raise
        raise BundleError(f"{path}: cannot encode a text: {error}") from error


def _word_ends(tokenizer: tokenizers.Tokenizer) -> re.Pattern[str] | None:
    """Matches a text up to the last character that is a word of its own or white space; None: it is not known which.

    Cut there, a text's beginning has the tokens that it has in the whole text. BERT's normaliser changes one character
    at a time, but for accents, which stay behind the character that they follow; its pre-tokeniser ends a word at each
    of these characters; and the tokens that are looked for before both (`[SEP]` in a text) contain none of them.
    """
    normalizer, added = tokenizer.normalizer, tokenizer.get_added_tokens_decoder().values()
    if (
        not isinstance(normalizer, tokenizers.normalizers.BertNormalizer)
        or not isinstance(tokenizer.pre_tokenizer, tokenizers.pre_tokenizers.BertPreTokenizer)
        or any(token.normalized for token in added)  # looked for in what the normaliser makes of a text
    ):
        return None
    contained = {character for token in added for character in token.content}
    ends = re.escape("".join(sorted({*" \t\n\r", *string.punctuation} - contained)))
    if normalizer.handle_chinese_chars and not any("\u4e00" <= character <= "\u9fff" for character in contained):
        ends += "\u4e00-\u9fff"
    return re.compile(f"(?s:.*)[{ends}]") if ends else None
