"""Texts that tri-letters say nothing of: without one letter they are an unknown word, of which a tower learns nothing.

In graded data that is a mistake, which people mend; of texts without grades, and of runs of words, some are always so.

Shapes: N texts, P pairs.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twinbert.errors import UsageError
from twinbert.tokenizer import Tokenizer, TriLetter, open_tokenizer_file, save_triletter
from twinbert.tokenizer.triletter import CLS, Letters
from twinbert.training.pairs import Pairs

_READ_AT_ONCE = 4096


def require_letters(letters: Letters, texts: Iterable[str]) -> None:
    """Refuses texts that have none of the letters.

    Raises:
        UsageError: the first such text.
    """
    if (text := next(without_letters(letters, texts), None)) is not None:
        remedy = ', or set letters to "unicode"' if letters == "ascii" else ""
        raise UsageError(
            f"the text {text[:80]!r} has no letter of the tri-letter tokenizer, so a tower would learn nothing "
            f"from it; remove it{remedy}"
        )


def without_letters(letters: Letters, texts: Iterable[str]) -> Iterator[str]:
    """The texts that have none of the letters, as a stream."""
    return (text for text, good in _marked(letters_tokenizer(letters), texts) if not good)


def letters_tokenizer(letters: Letters) -> Tokenizer:
    """A tokenizer of these letters, which reads no more of a text than tells whether it has one."""
    with tempfile.TemporaryDirectory() as folder:
        save_triletter(path := Path(folder) / "tokenizer.json", letters=letters)
        return open_tokenizer_file(path, max_tokens=1)


def readable(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[str]:
    """The texts that a tower learns something from, as a stream; of other tokenizers than tri-letters, all."""
    return (text for text, good in _marked(tokenizer, texts) if good)


def readable_pairs(tokenizer: Tokenizer, pairs: Pairs) -> Pairs:
    """The pairs both of whose texts are readable, likewise."""
    queries_N, documents_N = (_mask(tokenizer, texts) for texts in (pairs.queries, pairs.documents))
    kept_P = queries_N[pairs.query_P] & documents_N[pairs.document_P]
    if kept_P.all():
        return pairs
    return dataclasses.replace(
        pairs,
        query_P=pairs.query_P[kept_P],
        document_P=pairs.document_P[kept_P],
        grade_P=pairs.grade_P[kept_P],
        teacher_P=pairs.teacher_P[kept_P],
    )


def _marked(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[tuple[str, bool]]:
    stream = iter(texts)
    while part := list(islice(stream, _READ_AT_ONCE)):
        yield from zip(part, _mask(tokenizer, part).tolist(), strict=True)


def _mask(tokenizer: Tokenizer, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which are readable, bool [N]."""
    if not isinstance(tokenizer, TriLetter):
        return np.ones(len(texts), dtype=np.bool_)
    return np.array([ids.max() > CLS for ids in tokenizer.encode(texts).ids], dtype=np.bool_)
