"""What can go wrong in a store. Each message says what is wrong, where, and what to do.

StoreError
├── StoreNotFoundError       no store at this path
├── NoGenerationError        a store in which nothing was published yet
├── GenerationNotFoundError  no such generation
├── CorruptError             bytes are not those that were written
├── FormatError              written by a newer version
├── StoreLockedError         another process changes the store
├── SupersededError          another generation became current than the one that was worked on
├── GivenUpError             a verification that was broken off, since the process ends
├── StoreFullError           no space left
├── IdTypeError              ids of the wrong type for this store
├── RowsMismatchError        a delta whose rows are of another kind than the generation's
├── VectorsError             embeddings that the encoding cannot hold
└── EmptyGenerationError     nothing to publish
"""

from __future__ import annotations


class StoreError(Exception):
    """Root of the tree. `reason` is the `ErrorInfo.reason` that travels over gRPC."""

    reason = "STORE_ERROR"


class StoreNotFoundError(StoreError):
    """There is no store at this path."""

    reason = "STORE_NOT_FOUND"


class NoGenerationError(StoreError):
    """The store has no CURRENT: nothing was published yet."""

    reason = "STORE_EMPTY"


class GenerationNotFoundError(StoreError):
    """The store, or the server, does not have this generation."""

    reason = "GENERATION_NOT_HELD"


class CorruptError(StoreError):
    """A file is cut off, changed, missing, or cannot be read."""

    reason = "STORE_CORRUPT"


class FormatError(StoreError):
    """A newer version wrote this."""

    reason = "STORE_FORMAT"


class StoreLockedError(StoreError):
    """Another process changes the store; the message says who."""

    reason = "STORE_LOCKED"


class SupersededError(StoreError):
    """While a generation was made another became current than the one that it follows; nothing was changed."""

    reason = "STORE_SUPERSEDED"


class GivenUpError(StoreError):
    """A verification was broken off: `Store.give_up` was called."""

    reason = "GIVEN_UP"


class StoreFullError(StoreError):
    """The disk is full; what was published before is untouched."""

    reason = "STORE_FULL"


class IdTypeError(StoreError):
    """String ids for a store of integers, or the other way round."""

    reason = "ID_TYPE"


class RowsMismatchError(StoreError):
    """A delta of another fingerprint, encoding or dimension than the generation that it would change."""

    reason = "FINGERPRINT_MISMATCH"


class VectorsError(StoreError):
    """Embeddings that are not finite, or outside the range of their encoding."""

    reason = "EMBEDDINGS_INVALID"


class EmptyGenerationError(StoreError):
    """A refresh without a single document publishes nothing."""

    reason = "NO_DOCUMENTS"
