"""What counts as text, said once for the servers, the readers of documents and those that take words apart."""

from __future__ import annotations

import unicodedata


def is_blank(text: str) -> bool:
    """Whether there is nothing to encode: only white space, control and format characters (U+200B, NUL, a BOM)."""
    return all(character.isspace() or not character.isprintable() for character in text)


def folded(text: str) -> str:
    """The text NFKC-normalised and case-folded, so that one word has one form."""
    if text.isascii():
        return text.lower()
    # Twice: a capital's normal form may have other capitals, and a folded text another normal form.
    for _ in range(2):
        text = unicodedata.normalize("NFKC", text.casefold())
    return text


def is_mark(character: str) -> bool:
    """Whether it belongs to words as letters do, though no pattern knows it for one, e.g. the vowel signs of Hindi."""
    return unicodedata.category(character).startswith("M")
