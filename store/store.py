"""A store: a folder of immutable segments, generations that name them, and one pointer."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from store.delta import DeltaWriter
from store.encoding import codec
from store.errors import StoreError
from store.files import open_lock, require_store, sync_directory
from store.format import BUILDING, COMPACTION, GENERATIONS, LOCK, SEGMENTS, SWITCH
from store.manifest import IdType, Manifest, SegmentEntry, generation_names, read_current, read_manifest
from store.reader import Generation, SegmentPool
from store.stack import Stack
from store.writer import Writer


class Store:
    """A store in this process. LMDB opens a segment once a process, so make one `Store` for each folder.

    Args:
        path: the store's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pool = SegmentPool(path)

    def create(self) -> None:
        """Makes the folders where they are missing.

        Raises:
            StoreError: this is something else, or cannot be written.
        """
        if self.path.is_dir() and not (self.path / SEGMENTS).is_dir() and any(self.path.iterdir()):
            raise StoreError(f"{self.path} is not a store and not empty; name a new folder, or one that is a store")
        try:
            for folder in (self.path, *(self.path / name for name in (SEGMENTS, GENERATIONS, BUILDING))):
                if not folder.is_dir():
                    folder.mkdir(parents=True)
                    sync_directory(folder.parent)
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be made a store: {error.strerror}; name a folder to write to"
            ) from error
        for file in (LOCK, SWITCH, COMPACTION):  # now, as whoever owns the store: not by a later rollback of root's
            os.close(open_lock(self.path / file))

    def require(self) -> None:
        """Raises StoreNotFoundError unless there is a store here."""
        require_store(self.path)

    def current(self) -> str:
        """Name of the current generation.

        Raises:
            StoreNotFoundError: no store here.
            NoGenerationError: nothing was published yet.
            CorruptError: CURRENT cannot be read, or does not hold a name.
        """
        return read_current(self.path)

    def generations(self) -> list[str]:
        """Names of the generations, by number; `store.lineage` knows in which order they were sealed."""
        return generation_names(self.path)

    def manifest(self, name: str) -> Manifest:
        """Manifest of a generation.

        Raises:
            GenerationNotFoundError: no such generation.
            CorruptError: it cannot be read, or is not the bytes that its name promises.
            FormatError: a newer version wrote it.
        """
        return read_manifest(self.path, name)

    def open(self, name: str) -> Generation:
        """Opens a generation after checking its segments; close it when nothing reads it any more.

        Raises:
            GenerationNotFoundError: no such generation.
            CorruptError: a manifest or segment is not what was written.
            FormatError: a newer version wrote it.
            StoreError: another `Store` of this process has a segment of it open.
        """
        return Generation(self.manifest(name), self._pool)

    @contextlib.contextmanager
    def stack(self, manifest: Manifest, entries: Sequence[SegmentEntry]) -> Iterator[Stack]:
        """Some neighbouring segments of a generation, newest first, checked and open.

        Raises:
            CorruptError: one of them is not what the manifest says.
        """
        stack = self._pool.stack(manifest, entries)
        try:
            yield stack
        finally:
            self._pool.release_all(stack)

    def give_up(self) -> None:
        """Breaks off the verification of segments that are being opened, with GivenUpError: the process is to end, and
        not to read gigabytes first. For any thread.
        """
        self._pool.given_up.set()

    def writer(
        self,
        *,
        fingerprint: str,
        model: str,
        dimension: int,
        encoding: str,
        fixed_step: bool,
        id_type: IdType,
        software: str,
        delta: bool = False,
    ) -> Writer:
        """Begins a refresh: see `store.writer` and `store.delta`.

        Args:
            fingerprint: of what shapes the embeddings.
            model: the one that is meant to serve the generation.
            dimension: D.
            encoding: "float32", "float16" or "uint8".
            fixed_step: whether embeddings stay in [-1, 1] by construction (the tower ends in tanh).
            id_type: what ids are; must be the store's, if it has a generation.
            software: name and version of the program, for the manifest.
            delta: change the current generation, which must have the same kind of rows, with a `DeltaWriter`; else
                replace it.
        """
        rows = codec(encoding, dimension, fixed_step=fixed_step)
        if not delta:
            self.create()
        template = Manifest(
            number=0,
            id_type=id_type,
            seed=0,
            fingerprint=fingerprint,
            model=model,
            dimension=dimension,
            encoding=encoding,
            fixed_step=rows.fixed_step,
            documents=0,
            segments=(),
            parent=None,
            created_ms=0,
            watermark_ms=0,
            quality={},
            writer=software,
        )
        return (DeltaWriter if delta else Writer)(self.path, self._pool, template, rows)
