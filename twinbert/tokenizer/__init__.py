"""Text → token ids: WordPiece, and the tri-letters of TwinBERT, behind one interface."""

from __future__ import annotations

import json
from pathlib import Path

from twinbert.errors import BundleError
from twinbert.tokenizer.interface import TokenBatch, Tokenizer
from twinbert.tokenizer.triletter import TriLetter, save_triletter
from twinbert.tokenizer.wordpiece import WordPiece

__all__ = ["TokenBatch", "Tokenizer", "TriLetter", "WordPiece", "open_tokenizer", "save_triletter"]


def open_tokenizer(path: Path, *, max_tokens: int) -> Tokenizer:
    """Opens a tokenizer.json: one of `save_triletter`, or else a Hugging Face WordPiece.

    Args:
        path: the file.
        max_tokens: tokens that a text has at most, special tokens included.

    Raises:
        BundleError: the file cannot be read, or is of neither kind.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read as a tokenizer: {error}") from error
    if isinstance(content, dict) and content.get("kind") == TriLetter.kind:
        return TriLetter(path, max_tokens=max_tokens)
    return WordPiece(path, max_tokens=max_tokens)
