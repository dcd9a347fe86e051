"""Generations as manifests, and CURRENT, the file that names the one being served."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from store.encoding import ENCODINGS
from store.errors import CorruptError, FormatError, GenerationNotFoundError, NoGenerationError
from store.files import REMEDY, FileEntry, read_bounded, replace_file, require_store
from store.format import CURRENT, DATA, FORMAT, GENERATION_NAME, GENERATIONS, ID_TYPES, SEGMENT_ID
from store.format import generation_name as name_of

IdType = Literal["string", "integer"]

# Of a manifest: a thousand segments take a megabyte.
_MOST_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentEntry:
    """A segment as a manifest names it. `documents` are rows, `deleted` are tombstones; not both are 0."""

    id: str
    documents: int
    deleted: int
    file: FileEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A generation: which segments are the corpus, newest first, and what they were made with. Times in ms.

    `documents` are those that no newer segment replaces or deletes; `parent` is what a rollback goes back to.
    """

    number: int
    id_type: IdType
    seed: int
    fingerprint: str
    model: str
    dimension: int
    encoding: str
    fixed_step: bool
    documents: int
    segments: tuple[SegmentEntry, ...]
    parent: str | None
    created_ms: int
    watermark_ms: int
    quality: Mapping[str, Any]
    writer: str

    @property
    def dead_share(self) -> float:
        """Share of the rows that a newer segment replaces or deletes, 0 to 1."""
        return 1 - self.documents / sum(segment.documents for segment in self.segments)

    def to_bytes(self) -> bytes:
        """The manifest's canonical bytes."""
        content = dataclasses.asdict(self)
        content["format"] = FORMAT
        for segment in content["segments"]:
            segment["files"] = {DATA: segment.pop("file")}
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    @property
    def name(self) -> str:
        """E.g. "000012-9f3c01ab": the number, and the first 8 hex digits of the sha256 of the bytes."""
        return name_of(self.number, hashlib.sha256(self.to_bytes()).hexdigest())


def read_manifest(store: Path, name: str) -> Manifest:
    """Reads and checks a generation's manifest.

    Raises:
        GenerationNotFoundError: no such generation; the message names those that there are.
        CorruptError: it cannot be read, or the bytes are not those that the name promises.
        FormatError: a newer version wrote it.
    """
    path = store / GENERATIONS / f"{name}.json"
    try:
        content = read_bounded(path, _MOST_BYTES) if GENERATION_NAME.fullmatch(name) else None
    except FileNotFoundError:
        content = None
    except OSError as error:
        raise CorruptError(f"{path} cannot be read ({error.strerror}); {REMEDY}") from error
    if content is None:
        there = ", ".join(generation_names(store)) or "none"
        raise GenerationNotFoundError(f"{store} has no generation {name!r}; it has: {there}")
    if name_of(int(name.partition("-")[0]), hashlib.sha256(content).hexdigest()) != name:
        begins = name.partition("-")[2]
        raise CorruptError(f"{path} is not what was written: its sha256 does not begin with {begins}; {REMEDY}")
    try:
        fields = json.loads(content)
        if fields["format"] > FORMAT:
            raise FormatError(f"{path} has format {fields['format']}, this version reads {FORMAT}; update twinbert")
        manifest = _parse(fields)
        written = manifest.name  # a text may be one that no file can hold
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError(f"{path} is not a manifest: {error!r}") from error
    if name != written:
        raise CorruptError(f"{path} is not a manifest of this format: written again it would be {written}")
    return manifest


def _parse(fields: dict[str, Any]) -> Manifest:
    del fields["format"]
    segments = tuple(
        SegmentEntry(
            id=segment["id"],
            documents=segment["documents"],
            deleted=segment["deleted"],
            file=FileEntry(**segment["files"][DATA]),
        )
        for segment in fields.pop("segments")
    )
    manifest = Manifest(segments=segments, **fields)
    if not _is_sound(manifest):
        raise ValueError("a field is of another type, or out of range")
    return manifest


def _is_sound(manifest: Manifest) -> bool:
    """Whether the fields are of their types, and those that name files or size arrays within bounds.

    What a sound manifest says of its segments may still be wrong; then they fail to open.
    """
    texts = [manifest.id_type, manifest.fingerprint, manifest.model, manifest.encoding, manifest.writer]
    numbers = [manifest.number, manifest.seed, manifest.dimension, manifest.created_ms, manifest.watermark_ms]
    numbers.append(manifest.documents)
    for segment in manifest.segments:
        texts += [segment.id, segment.file.xxh3_128, segment.file.sha256]
        numbers += [segment.documents, segment.deleted, segment.file.size]
    return (
        all(type(text) is str for text in texts)
        and all(type(number) is int for number in numbers)
        and type(manifest.fixed_step) is bool
        and type(manifest.quality) is dict
        and (manifest.parent is None or GENERATION_NAME.fullmatch(manifest.parent) is not None)
        and all(SEGMENT_ID.fullmatch(segment.id) for segment in manifest.segments)
        and manifest.encoding in ENCODINGS
        and manifest.id_type in ID_TYPES
        and 0 <= manifest.seed < 1 << 64
        and 0 < manifest.dimension <= 1 << 16
        and _is_corpus(manifest.segments, manifest.documents)
    )


def _is_corpus(segments: tuple[SegmentEntry, ...], documents: int) -> bool:
    """Whether a stack of such segments can have so many documents; the oldest has nothing below it to delete."""
    return (
        len({segment.id for segment in segments}) == len(segments) > 0
        and all(min(one.documents, one.deleted) >= 0 < one.documents + one.deleted for one in segments)
        and segments[-1].deleted == 0
        and 0 < documents <= sum(segment.documents for segment in segments)
    )


def write_manifest(store: Path, manifest: Manifest) -> None:
    """Writes it durably; nothing points to it yet."""
    replace_file(store / GENERATIONS / f"{manifest.name}.json", manifest.to_bytes())


def generation_names(store: Path) -> list[str]:
    """The generations of a store, by number."""
    names = (path.stem for path in (store / GENERATIONS).glob("*.json"))
    return sorted((name for name in names if GENERATION_NAME.fullmatch(name)), key=generation_number)


def next_number(store: Path) -> int:
    """A number that no generation of the store has, higher than all."""
    return max(map(generation_number, generation_names(store)), default=0) + 1


def generation_number(name: str) -> int:
    """12 of "000012-9f3c01ab"."""
    return int(name.partition("-")[0])


def read_current(store: Path) -> str:
    """The name in CURRENT.

    Raises:
        StoreNotFoundError: no store here.
        NoGenerationError: nothing was published yet.
        CorruptError: CURRENT cannot be read, or does not hold a name.
    """
    path = store / CURRENT
    try:
        content = read_bounded(path, _MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        require_store(store)
        raise NoGenerationError(f"{store} has no current generation; publish one with `twinbert refresh`") from None
    except OSError as error:
        raise CorruptError(f"{path} cannot be read ({error.strerror}); `twinbert store rollback` mends it") from error
    name = content.decode("ascii", "replace").removesuffix("\n")
    if not content.endswith(b"\n") or not GENERATION_NAME.fullmatch(name):
        raise CorruptError(
            f"{path} holds {content[:40]!r}, not a generation's name; `twinbert store rollback` mends it"
        )
    return name


def write_current(store: Path, name: str) -> None:
    """Makes a generation the current one, in one step."""
    replace_file(store / CURRENT, f"{name}\n".encode())
