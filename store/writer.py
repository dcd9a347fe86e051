"""A full refresh as the store sees it: rows come in, a generation goes out. One `Writer` is one refresh.

with store.writer(...) as writer:
    known = writer.add_known(batch)               # same text as a row that is there: its bytes are copied
    writer.add(batch.take(~known), embeddings)    # the others, encoded by the caller
    with writer.seal() as generation: ...         # durable, not yet published: the caller can check it
    name = writer.publish(quality)                # replaces CURRENT

`store.delta` is the other kind of refresh.

Memory: while documents are added 24 bytes for each, and 20 for each row that can be reused, of the current generation,
an interrupted build or this one; while they are sealed 66, and the text of their ids.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from store.building import Building, Digests, StoredDigests
from store.documents import Batch, Documents, Resolved
from store.encoding import Codec, Floats, Rows
from store.errors import CorruptError, GenerationNotFoundError, IdTypeError, NoGenerationError, StoreLockedError
from store.files import FileEntry, locked, open_lock, reporting_full_disk, sync_directory
from store.format import DATA, DIGEST, GENERATIONS, SEGMENTS, SWITCH
from store.lineage import sealing_ms
from store.manifest import Manifest, SegmentEntry, next_number, read_current, read_manifest
from store.publication import publish, readable_current, require_unchanged, switching
from store.reader import Generation, SegmentPool
from store.segment import Columns, write_segment

_GATHER_ROWS = 1 << 16


def digests(texts: Sequence[str]) -> Digests:
    """BLAKE2b of each text's UTF-8, 16 bytes: what decides whether a document has changed. V16 [N]."""
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(joined, dtype=DIGEST)


class Writer:
    """See the module. Made by `Store.writer`.

    Args:
        store: the store's folder.
        pool: the process's open segments.
        template: the manifest to be: what depends on the store's state is still to fill in.
        codec: how rows are stored.

    Attributes:
        damage: why rows of the current generation cannot be reused, if it is damaged; a full refresh mends the store.
        duplicates: documents whose id came again later in the input; known once sealed.
    """

    _kind = "refresh"

    def __init__(self, store: Path, pool: SegmentPool, template: Manifest, codec: Codec) -> None:
        self._store, self._pool, self._template, self._codec = store, pool, template, codec
        self._exit = contextlib.ExitStack()
        self._began: str | None = None  # what CURRENT named, if anything that could be read
        self._current: Generation | None = None  # whose rows can be reused
        self._reusable: list[StoredDigests] = []  # of each of its segments
        self.damage: CorruptError | None = None
        self.duplicates = 0

    def __enter__(self) -> Self:
        """Takes the store's lock.

        Raises:
            StoreLockedError: somebody else changes the store.
            IdTypeError: the store has ids of another type.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self._store, f"a {self._kind} of model {self._template.model[:12]}"))
            os.close(open_lock(self._store / SWITCH))  # said before hours of work: it is needed to publish
            self._follow_current(stack)
            self._building = Building(self._store, self._codec, self._template.fingerprint, self._kind)
            stack.callback(self._building.close)
            self._documents = Documents(self._building.path, self._template.id_type, self._template.seed)
            stack.callback(self._documents.close)
            self._exit = stack.pop_all()
        return self

    def _follow_current(self, stack: contextlib.ExitStack) -> None:
        """Takes from the current generation what it has that is sound: of a damaged segment no rows are reused."""
        try:
            self._began = read_current(self._store)
            manifest = read_manifest(self._store, self._began)
        except NoGenerationError:
            return
        except (CorruptError, GenerationNotFoundError) as error:
            self.damage = CorruptError(str(error))
            return
        self._require_id_type(manifest)
        self._template = dataclasses.replace(self._template, parent=manifest.name, seed=manifest.seed)
        try:
            current = stack.enter_context(contextlib.closing(Generation(manifest, self._pool)))
        except CorruptError as error:
            self.damage = error
            return
        if rows_depend_on(manifest) == rows_depend_on(self._template):
            self._reuse(current)

    def _require_id_type(self, manifest: Manifest) -> None:
        if manifest.id_type != self._template.id_type:
            raise IdTypeError(
                f"the ids of {self._store} are {manifest.id_type}s, not {self._template.id_type}s; "
                "a store keeps its id type: make another store"
            )

    def _reuse(self, current: Generation) -> None:
        """Lets rows be reused, dead ones too: a row depends on its text only."""
        self._current = current
        self._reusable = [StoredDigests(segment.digests) for segment in current.stack.segments]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases the lock. Of what was not published only the rows of the build stay, for the next run."""
        self._exit.close()

    def add_known(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Adds those documents whose text already has a row, in this build or the current generation.

        Returns:
            Which of the batch were added, [N]; the caller encodes and adds the others.
        """
        rows_N = self._building.find(batch.digests)
        for segment, index in zip(self._current.stack.segments if self._current else (), self._reusable, strict=True):
            missing_N = np.flatnonzero(rows_N < 0)
            stored = index.find(batch.digests[missing_N])
            missing_N, stored = missing_N[stored >= 0], stored[stored >= 0]
            if len(stored):
                first = self._building.append(batch.digests[missing_N], *segment.raw(stored))
                rows_N[missing_N] = np.arange(first, first + len(stored))
        known_N = rows_N >= 0
        if known_N.any():
            self._documents.add(batch.take(known_N), rows_N[known_N])
        return known_N

    def add(self, batch: Batch, vectors_ND: Floats) -> None:
        """Adds documents with their embeddings, float32 [N, D].

        Raises:
            VectorsError: an embedding that the encoding cannot hold.
            IdTypeError: an id is not of the store's type.
            StoreFullError: no space left.
            StoreError: more documents than a segment can hold.
        """
        first = self._building.append(batch.digests, *self._codec.encode(vectors_ND))
        self._documents.add(batch, np.arange(first, first + len(vectors_ND)))

    def sync(self) -> None:
        """Makes what was added durable, so that a later run finds it."""
        self._building.sync()

    def discard(self) -> None:
        """Removes all rows of the build, so that no later run reuses them. Nothing can be added any more."""
        self._building.remove()

    def _finish_adding(self) -> None:
        self._building.finish()
        self._reusable.clear()
        require_unchanged(self._store, self._began)  # before gigabytes are sealed in vain

    @contextlib.contextmanager
    def seal(self) -> Iterator[Generation]:
        """Makes the segment durable and opens it as the generation to be, unpublished.

        Raises:
            EmptyGenerationError: no documents were added.
            SupersededError: somebody rolled back meanwhile.
            StoreFullError: no space left.
        """
        self._finish_adding()
        resolved = self._documents.resolve()
        self.duplicates = resolved.duplicates
        with self._sealed(resolved, (), int(resolved.times.max())) as generation:
            yield generation

    @contextlib.contextmanager
    def _sealed(self, resolved: Resolved, below: tuple[SegmentEntry, ...], watermark_ms: int) -> Iterator[Generation]:
        """The generation of a new segment over those that are there."""
        segment_id = uuid.uuid4().hex
        self._exit.callback(self._remove_unpublished, segment_id)
        rows = len(resolved.rows)
        with reporting_full_disk(self._store, rows * self._codec.row_bytes):
            file = self._write_segment(segment_id, resolved)
        entry = SegmentEntry(id=segment_id, documents=rows, deleted=len(resolved.deleted), file=file)
        self._template = dataclasses.replace(
            self._template,
            number=next_number(self._store),
            seed=resolved.seed,
            documents=resolved.documents,
            segments=(entry, *below),
            created_ms=sealing_ms(self._store, self._template.parent),
            watermark_ms=watermark_ms,
        )
        generation = Generation(self._template, self._pool)
        try:
            yield generation
        finally:
            generation.close()

    def publish(self, quality: Mapping[str, Any]) -> str:
        """Writes the manifest, replaces CURRENT and removes the build; returns the generation's name.

        Args:
            quality: what was measured on the sealed generation, for the manifest.

        Raises:
            SupersededError: somebody rolled back meanwhile; nothing was published, the next run reuses the build.
            StoreFullError: no space left; nothing was published.
            StoreLockedError: somebody replaces CURRENT or collects, and for longer than moments; likewise.
        """
        if not self._template.segments:
            raise ValueError("there is no segment to publish: seal first")
        self._template = dataclasses.replace(self._template, quality=quality)
        with reporting_full_disk(self._store):
            publish(self._store, self._template, began=self._began)
        self._building.remove()
        return self._template.name

    def _remove_unpublished(self, segment_id: str) -> None:
        remove_unpublished(self._store, self._template.name, segment_id)

    def _write_segment(self, segment_id: str, resolved: Resolved) -> FileEntry:
        draft, final = self._building.path / "segment", self._store / SEGMENTS / segment_id
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir()
            entries = self._building.entries()
            columns = Columns(
                keys=resolved.keys,
                deleted=resolved.deleted,
                ids=resolved.ids,
                digests=entries["digest"][resolved.rows],
                times=resolved.times,
                scales=entries["scale"][resolved.rows] if self._codec.has_scales else None,
            )
            write_segment(draft, self._ordered_vectors(resolved.rows), columns)
            file = FileEntry.of(draft / DATA)
            draft.rename(final)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        finally:
            (self._building.path / "ordered.bin").unlink(missing_ok=True)
        sync_directory(final.parent)
        return file

    def _ordered_vectors(self, rows_n: npt.NDArray[np.uint32]) -> Rows:
        """The building's rows in the order given: the file itself where that is its order, else a gathered copy."""
        vectors = self._building.vectors()
        n = len(rows_n)
        if np.array_equal(rows_n, np.arange(n)):
            return vectors[:n]
        path = self._building.path / "ordered.bin"
        with path.open("wb") as file:
            for start in range(0, n, _GATHER_ROWS):
                file.write(vectors[rows_n[start : start + _GATHER_ROWS]].data.cast("B"))
        return np.memmap(path, self._codec.dtype, "r", shape=(n, self._codec.dimension))


def remove_unpublished(store: Path, name: str, segment_id: str | None = None) -> None:
    """Removes a generation's manifest and the segment that was written for it, unless it is the current one.

    A rollback may be going to it just then. Where whoever replaces CURRENT does not end, a collection removes it.
    """
    with contextlib.suppress(StoreLockedError), switching(store, f"the withdrawal of {name}"):
        if readable_current(store) == name:  # also where only what comes after its replacement failed
            return
        manifest = store / GENERATIONS / f"{name}.json"
        manifest.unlink(missing_ok=True)
        sync_directory(manifest.parent)
        if segment_id is not None:
            shutil.rmtree(store / SEGMENTS / segment_id, ignore_errors=True)


def rows_depend_on(manifest: Manifest) -> tuple[str, str, bool, int]:
    """What a row depends on beside its text."""
    return manifest.fingerprint, manifest.encoding, manifest.fixed_step, manifest.dimension
