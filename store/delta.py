"""A delta refresh as the store sees it: changed documents and deletions lie over the generation that is there.

They are a small segment in front of the generation's own, which stay as they are: see `store.stack`. Who has the last
word on a document is decided by the order of publication, never by source times.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from store.changes import Clash
from store.documents import Batch
from store.encoding import Codec
from store.errors import EmptyGenerationError, RowsMismatchError
from store.format import DIGEST, TOMBSTONE
from store.manifest import Manifest, read_current, read_manifest
from store.publication import require_unchanged
from store.reader import Generation, SegmentPool
from store.writer import Writer, rows_depend_on


class DeltaWriter(Writer):
    """Changes the current generation. Made by `Store.writer`.

    Attributes:
        duplicates: documents and deletions whose id came again later in the input; known once sealed.
        absent: deletions of ids that the store does not have; known once sealed.
        clashes: documents that are left out; known once sealed.
    """

    _kind = "delta refresh"
    _current: Generation

    def __init__(self, store: Path, pool: SegmentPool, template: Manifest, codec: Codec) -> None:
        super().__init__(store, pool, template, codec)
        self.absent = 0
        self.clashes: tuple[Clash, ...] = ()
        self._changes_nothing = False

    def _follow_current(self, stack: contextlib.ExitStack) -> None:
        """Opens the generation to change, and keeps the model that serves it.

        Raises:
            NoGenerationError: there is none.
            RowsMismatchError: its rows are of another kind.
            CorruptError: it is damaged.
        """
        self._began = read_current(self._store)
        manifest = read_manifest(self._store, self._began)
        self._require_id_type(manifest)
        if rows_depend_on(manifest) != rows_depend_on(self._template):
            raise RowsMismatchError(
                f"generation {manifest.name} of {self._store} has {_rows_of(manifest)}; the delta has "
                f"{_rows_of(self._template)}: use what the store was made with, or refresh with the whole corpus"
            )
        self._template = dataclasses.replace(
            self._template, parent=manifest.name, seed=manifest.seed, model=manifest.model
        )
        self._reuse(stack.enter_context(contextlib.closing(Generation(manifest, self._pool))))

    def delete(self, ids: Sequence[str] | Sequence[int], positions_N: npt.NDArray[np.int64]) -> None:
        """Deletes documents; an id that is not there is counted as `absent`.

        Args:
            ids: of the store's type.
            positions_N: i64, places among the documents of the input: of an id that comes again the later place wins.

        Raises:
            IdTypeError: an id is not of the store's type.
            StoreFullError: no space left.
        """
        count = len(positions_N)
        batch = Batch(ids=ids, digests=np.zeros(count, DIGEST), times=np.zeros(count, np.int64), positions=positions_N)
        self._documents.add(batch, np.full(count, TOMBSTONE, np.int64))

    @contextlib.contextmanager
    def seal(self) -> Iterator[Generation]:
        """Makes the segment durable and opens it, over the others, as the generation to be, unpublished. Where nothing
        changes, that is the current one.

        Raises:
            EmptyGenerationError: no document would be left.
            SupersededError: somebody rolled back meanwhile.
            StoreFullError: no space left.
        """
        self._finish_adding()
        manifest = self._current.manifest
        resolved = self._documents.resolve_delta(self._current.stack, self._building.entries()["digest"])
        self.duplicates, self.absent, self.clashes = resolved.duplicates, resolved.absent, resolved.clashes
        if not resolved.documents:
            raise EmptyGenerationError(
                f"the delta deletes all {manifest.documents:,} documents of {manifest.name}, and a generation has at "
                "least one: nothing was published"
            )
        self._changes_nothing = resolved.changes_nothing
        if self._changes_nothing:
            yield self._current
            return
        watermark_ms = int(resolved.times.max(initial=manifest.watermark_ms))
        with self._sealed(resolved, manifest.segments, watermark_ms) as generation:
            yield generation

    def publish(self, quality: Mapping[str, Any]) -> str:
        """As `Writer.publish`; where nothing changes, the current generation stays, and its name is returned."""
        if not self._changes_nothing:
            return super().publish(quality)
        require_unchanged(self._store, self._began)
        self._building.remove()
        return self._current.name


def _rows_of(manifest: Manifest) -> str:
    step = ", fixed step" if manifest.fixed_step else ""
    return f"rows of fingerprint {manifest.fingerprint} ({manifest.dimension} × {manifest.encoding}{step})"
