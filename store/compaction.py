"""Compaction: neighbouring segments of the current generation become one, which the same lookups find the same rows in.

    merge      what counts of the segments is copied into a draft, while refreshes and deltas go on
    publish    under the store's lock, for milliseconds: in the generation that is current by then, the new segment
               takes the place of those that were merged

So a delta never waits for a merge, and a merge is in vain only where a full refresh or a rollback came in between. A
process that dies leaves a draft, or a segment that nobody names: the next compaction or collection removes them.

Shapes: n rows of the new segment, N rows of a block, D dimension.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from store.encoding import Rows
from store.errors import StoreError, SupersededError
from store.files import FileEntry, locked, reporting_full_disk, sync_directory
from store.format import (
    BUILDING,
    COMPACTION,
    COMPACTION_DRAFT,
    DATA,
    DIGEST,
    F32,
    I64,
    MAX_ID_TEXT_BYTES,
    MAX_ROWS,
    SEGMENTS,
    U64,
)
from store.keys import Keys
from store.manifest import Manifest, SegmentEntry, next_number
from store.publication import publish
from store.segment import Columns, Ids, Segment, write_segment
from store.stack import Stack
from store.store import Store
from store.writer import remove_unpublished

_STEP = "a step of a compaction"  # as those read who wait for the lock

_BLOCK_ROWS = 1 << 14
_BLOCK_BYTES = 16 << 20

# A segment is merged with the newer ones only when they are together at least a quarter of it, so that a row is copied
# a few times on its way to the oldest segment, however small the deltas are.
_GROWTH = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """What a compaction did.

    Attributes:
        before: the generation whose place the new one took.
        generation: the new one.
        segments: how many became one.
        documents: rows of the new segment.
        dropped: rows that a newer segment replaced or deleted.
    """

    before: str
    generation: str
    segments: int
    documents: int
    dropped: int


def due(manifest: Manifest, *, max_segments: int, max_dead_share: float) -> int:
    """How many of a generation's newest segments should be merged; 0: none.

    Args:
        manifest: the generation's.
        max_segments: more are too many; then so many are merged that small ones do not lie over others of their size.
        max_dead_share: of its rows; where more are dead, all segments are merged.
    """
    sizes = [segment.documents + segment.deleted for segment in manifest.segments]
    if len(sizes) > 1 and manifest.dead_share > max_dead_share:
        return len(sizes)
    if len(sizes) <= max_segments:
        return 0
    return next((count for count in range(2, len(sizes)) if sizes[count] > _GROWTH * sum(sizes[:count])), len(sizes))


def compact(store: Store, *, software: str, newest: int | None = None, wait: bool = False) -> Compacted | None:
    """Merges segments of the current generation, and publishes the result as the next one. Nothing is encoded.

    On the heap are 36 bytes for each row, and a block of rows; the rest goes from map to file.

    Args:
        store: the store.
        software: name and version of the program, for the manifest.
        newest: how many of the newest segments; None: all.
        wait: for a refresh that is running, and do not be refused.

    Returns:
        What was done; None where there is only one segment to merge.

    Raises:
        StoreLockedError: somebody changes the store, or compacts it.
        SupersededError: the segments that were merged are not current any more.
        CorruptError: a segment is damaged.
        StoreFullError: no space left; nothing was changed.
        StoreError: more documents than a segment can hold.
    """
    with locked(store.path, "a compaction", file=COMPACTION):
        with locked(store.path, _STEP, wait=wait, brief=True):  # a merge beside a full refresh would be in vain
            manifest = store.manifest(store.current())
        merged = manifest.segments[:newest]
        if len(merged) < 2:
            return None
        draft = store.path / BUILDING / COMPACTION_DRAFT
        shutil.rmtree(draft, ignore_errors=True)
        try:
            with store.stack(manifest, merged) as stack:
                entry = _merge(stack, draft, merged, to_the_oldest=merged == manifest.segments)
                dropped = len(stack.dead)
            with locked(store.path, _STEP, wait=True, brief=True), reporting_full_disk(store.path):
                before, after = _publish(store, draft, merged, entry, software)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return Compacted(before=before, generation=after, segments=len(merged), documents=entry.documents, dropped=dropped)


def _merge(stack: Stack, draft: Path, merged: tuple[SegmentEntry, ...], *, to_the_oldest: bool) -> SegmentEntry:
    """Writes the segment that stands for all of the stack."""
    # The rows are there twice for a while: gathered, and in the segment.
    with reporting_full_disk(draft.parent, 2 * sum(entry.file.size for entry in merged)):
        (draft / "segment").mkdir(parents=True)
        # Where nothing lies below there is nothing to delete.
        deleted = np.empty(0, U64) if to_the_oldest else stack.deleted
        vectors_nD, columns = _gather(stack, draft, deleted)
        write_segment(draft / "segment", vectors_nD, columns)
        return SegmentEntry(
            id=uuid.uuid4().hex,
            documents=len(vectors_nD),
            deleted=len(deleted),
            file=FileEntry.of(draft / "segment" / DATA),
        )


def _gather(stack: Stack, folder: Path, deleted: Keys) -> tuple[Rows, Columns]:
    """Copies the rows that count, with all that belongs to them, to files, and maps those."""
    oldest = stack.segments[0]
    codec, numbers = oldest.codec, oldest.ids.numbers is not None
    dtypes = {"vectors": codec.dtype, "digests": DIGEST, "times": I64}
    dtypes |= {"numbers": U64} if numbers else {"id_offsets": U64, "id_bytes": np.dtype("u1")}
    dtypes |= {"scales": F32} if codec.has_scales else {}
    keys_n, row, text_bytes = np.empty(stack.documents, U64), 0, 0
    with contextlib.ExitStack() as exit_:
        files = {name: exit_.enter_context((folder / name).open("wb")) for name in dtypes}
        if not numbers:
            files["id_offsets"].write(bytes(U64.itemsize))
        for segment, own_keys, rows_N in _blocks(stack):
            keys_n[row : row + len(rows_N)] = own_keys[rows_N]
            columns = _columns(segment, rows_N, text_bytes)
            for name, file in files.items():
                file.write(np.ascontiguousarray(columns[name]).reshape(-1).view(np.uint8).data)
            row, text_bytes = row + len(rows_N), text_bytes + (0 if numbers else len(columns["id_bytes"]))
    if row + len(deleted) > MAX_ROWS or text_bytes > MAX_ID_TEXT_BYTES:
        raise StoreError(
            f"a segment holds at most {MAX_ROWS:,} documents and {MAX_ID_TEXT_BYTES:,} bytes of ids, these have more; "
            "shard the corpus over several stores"
        )
    found = {name: _mapped(folder / name, dtype) for name, dtype in dtypes.items()}
    ids = Ids(numbers=found.get("numbers"), offsets=found.get("id_offsets"), text=found.get("id_bytes"))
    return found["vectors"].reshape(-1, codec.dimension), Columns(
        keys=keys_n,
        deleted=deleted,
        ids=ids,
        digests=found["digests"],
        times=found["times"],
        scales=found.get("scales"),
    )


def _blocks(stack: Stack) -> Iterator[tuple[Segment, Keys, npt.NDArray[np.int64]]]:
    """The rows that count, oldest segment first, in blocks: a segment, the keys of its rows, and rows of its own."""
    step = min(_BLOCK_ROWS, max(1, _BLOCK_BYTES // stack.segments[0].codec.row_bytes))
    at: Segment | None = None
    for start in range(0, stack.documents, step):
        rows_N = stack.rows_at(np.arange(start, min(start + step, stack.documents)))
        for segment, _, own_N in stack.cut(rows_N):
            if segment is not at:
                at, keys = segment, segment.keys()
            yield segment, keys, own_N


def _columns(segment: Segment, rows_N: npt.NDArray[np.int64], text_bytes: int) -> dict[str, npt.NDArray[Any]]:
    """All there is of some rows, behind others whose ids have so many bytes."""
    vectors_ND, scales_N = segment.raw(rows_N)
    columns: dict[str, npt.NDArray[Any]] = {
        "vectors": vectors_ND,
        "digests": segment.digests[rows_N],
        "times": segment.times[rows_N],
    }
    ids = segment.ids.subset(rows_N)
    if ids.numbers is not None:
        columns["numbers"] = ids.numbers
    else:
        assert ids.offsets is not None
        assert ids.text is not None
        columns |= {"id_offsets": ids.offsets[1:] + np.uint64(text_bytes), "id_bytes": ids.text}
    if scales_N is not None:
        columns["scales"] = scales_N
    return columns


def _mapped(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def _publish(
    store: Store, draft: Path, merged: tuple[SegmentEntry, ...], entry: SegmentEntry, software: str
) -> tuple[str, str]:
    """Puts the new segment in the place of those that were merged; returns the names of the generations before and now.

    The documents stay the same, so when they were published, what serves them, what was measured on them and what a
    rollback goes back to do too.
    """
    manifest = store.manifest(store.current())
    segments, count = manifest.segments, len(merged)
    places = [place for place in range(len(segments)) if segments[place : place + count] == merged]
    if not places:
        raise SupersededError(
            f"{store.path}: while segments were merged, {manifest.name} became current, which does not have them; "
            "nothing was changed"
        )
    [place] = places
    after = dataclasses.replace(
        manifest,
        number=next_number(store.path),
        segments=(*segments[:place], entry, *segments[place + count :]),
        writer=software,
    )
    final = store.path / SEGMENTS / entry.id
    with contextlib.ExitStack() as undo:
        undo.callback(remove_unpublished, store.path, after.name, entry.id)
        (draft / "segment").rename(final)
        sync_directory(final.parent)
        publish(store.path, after, began=manifest.name)
        undo.pop_all()
    return manifest.name, after.name
