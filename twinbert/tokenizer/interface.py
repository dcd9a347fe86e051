"""What a tower needs of a tokenizer, and what it gets from it.

Shapes: N texts, L tokens, T trigrams of a token (tri-letter only).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

CHARACTERS = 16
"""Of a long text as many are read first for each token that is kept: three times those of a token of English."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Texts as token ids, each at its real length.

    Attributes:
        ids: int64 for each text, special tokens included: [L] of WordPiece, [L, T] of tri-letter, where 0 fills up
            words of fewer trigrams.
        truncated: bool [N], which texts were longer than the tower reads.
    """

    ids: list[Ints]
    truncated: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Ints:
        """Number of tokens of each text, [N]."""
        return np.fromiter(map(len, self.ids), dtype=np.int64, count=len(self.ids))

    def take(self, texts: Sequence[int] | Ints) -> TokenBatch:
        """Some of the texts, in the order given."""
        return TokenBatch([self.ids[text] for text in texts], self.truncated[texts])

    def padded(self) -> tuple[Ints, Ints]:
        """All texts, of which there is at least one, as a tower's input.

        Returns:
            input_ids [N, L] or [N, L, T], padded to the largest with id 0: what is masked may be any id, and
            trigram 0 adds nothing to a word. attention_mask [N, L]: 1 for tokens, 0 for padding.
        """
        shape = [len(self.ids), *map(max, zip(*(ids.shape for ids in self.ids), strict=True))]
        input_ids = np.zeros(shape, dtype=np.int64)
        attention_mask_NL = np.zeros(shape[:2], dtype=np.int64)
        for row, ids in enumerate(self.ids):
            input_ids[row][tuple(map(slice, ids.shape))] = ids
            attention_mask_NL[row, : len(ids)] = 1
        return input_ids, attention_mask_NL


class Tokenizer(Protocol):
    """What a tower needs of a tokenizer. Implementations may be called from several threads at once."""

    @property
    def kind(self) -> str:
        """`wordpiece`: a token is an id; `triletter`: a token is the ids of a word's trigrams."""

    @property
    def digest(self) -> str:
        """sha256 of the tokenizer's file, 64 hex digits."""

    @property
    def max_tokens(self) -> int:
        """Tokens that `encode` gives at most, special tokens included."""

    @property
    def vocabulary(self) -> int:
        """Number of ids: every id is below it."""

    @property
    def starts_with_cls(self) -> bool:
        """Whether the first token of every text is [CLS], whose state `cls` pooling takes."""

    @property
    def description(self) -> Mapping[str, object]:
        """What bundle.json tells of it beside kind and vocabulary, e.g. whether capitals make a difference."""

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Token ids of texts, which the caller has checked not to be blank."""
