"""What counts as text, said once for the servers and the readers of documents."""

from __future__ import annotations


def is_blank(text: str) -> bool:
    """Whether there is nothing to encode: only white space, control and format characters (U+200B, NUL, a BOM)."""
    return all(character.isspace() or not character.isprintable() for character in text)
