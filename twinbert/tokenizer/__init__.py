"""Text → token ids: WordPiece, and the tri-letters of TwinBERT, behind one interface."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from twinbert.errors import BundleError
from twinbert.tokenizer.interface import TokenBatch, Tokenizer
from twinbert.tokenizer.triletter import TriLetter, save_triletter
from twinbert.tokenizer.wordpiece import WordPiece

__all__ = [
    "KINDS",
    "TokenBatch",
    "Tokenizer",
    "TriLetter",
    "WordPiece",
    "open_tokenizer",
    "open_tokenizer_file",
    "save_triletter",
]

KINDS: Mapping[str, type[WordPiece | TriLetter]] = {kind.kind: kind for kind in (WordPiece, TriLetter)}
"""By what a bundle calls them; each is made from a file and the most tokens that a text may have."""


def open_tokenizer(kind: str, path: Path, *, max_tokens: int) -> Tokenizer:
    """The tokenizer of a bundle.

    Args:
        kind: what the bundle says it is.
        path: its file.
        max_tokens: tokens that a text has at most, special tokens included.

    Raises:
        BundleError: there is no such kind, or the file cannot be read as one.
    """
    if kind not in KINDS:
        raise BundleError(f"{path}: is a {kind!r} tokenizer, this version reads {', '.join(KINDS)}; upgrade twinbert")
    return KINDS[kind](path, max_tokens=max_tokens)


def open_tokenizer_file(path: Path, *, max_tokens: int) -> Tokenizer:
    """A tokenizer that no bundle names yet: a file of `save_triletter`, or else of a Hugging Face WordPiece.

    Args:
        path: the file.
        max_tokens: tokens that a text has at most, special tokens included.

    Raises:
        BundleError: the file cannot be read, or is of neither kind.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read as a tokenizer: {error}") from error
    # What WordPiece reads names no kind.
    stated = content.get("kind") if isinstance(content, dict) else None
    kind = TriLetter.kind if stated == TriLetter.kind else WordPiece.kind
    return open_tokenizer(kind, path, max_tokens=max_tokens)
