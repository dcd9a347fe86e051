"""Manifests and CURRENT: what they say, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_cases import FINGERPRINT, MODEL, SOFTWARE, add, documents, forge, refresh, tree, writer

from store.errors import (
    CorruptError,
    FormatError,
    GenerationNotFoundError,
)
from store.format import CURRENT, GENERATIONS
from store.maintenance import list_generations
from store.store import Store
from store.verification import verify

Fields = dict[str, Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound store that no test may change."""
    path = tmp_path_factory.mktemp("manifest") / "store"
    refresh(Store(path), documents(20))
    return path


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Store:
    """A copy of it to damage."""
    return Store(shutil.copytree(original, tmp_path / "store"))


def manifest_path(store: Store) -> Path:
    """The current generation's manifest."""
    return store.path / GENERATIONS / f"{store.current()}.json"


def test_what_a_manifest_says(store: Store) -> None:
    """A manifest states what its generation was made with and holds, and reads back as it was written."""
    manifest = store.manifest(store.current())
    stated = dataclasses.asdict(manifest)
    entry = stated.pop("segments")[0]
    assert stated.pop("created_ms") > 1_700_000_000_000
    assert stated == {
        "number": 1,
        "id_type": "string",
        "seed": 0,
        "fingerprint": FINGERPRINT,
        "model": MODEL,
        "dimension": 16,
        "encoding": "float32",
        "fixed_step": False,
        "documents": 20,
        "parent": None,
        "watermark_ms": 1_019,
        "quality": {},
        "writer": SOFTWARE,
    }
    content = (store.path / "segments" / entry["id"] / "data.mdb").read_bytes()
    assert entry["documents"] == 20
    assert entry["file"]["size"] == len(content)
    assert entry["file"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert manifest.to_bytes() == manifest_path(store).read_bytes()


def test_a_generation_is_named_by_its_bytes(store: Store) -> None:
    """The name is the number and the first 8 hex digits of the manifest's sha256, and CURRENT holds it."""
    name = f"000001-{hashlib.sha256(manifest_path(store).read_bytes()).hexdigest()[:8]}"
    assert store.current() == name == store.manifest(name).name
    assert (store.path / CURRENT).read_bytes() == f"{name}\n".encode()


def test_quality_is_kept(store: Store) -> None:
    """What was measured before publishing stands in the manifest, text of any language and numbers alike."""
    quality = {"sample": 3, "error": 1e-7, "note": "größte Abweichung", "nested": {"p99": [0.25, None, True]}}
    with writer(store) as into:
        add(into, documents(3))
        with into.seal():
            pass
        into.publish(quality)
    assert store.manifest(store.current()).quality == quality


def test_every_flipped_byte_is_refused(store: Store) -> None:
    """A manifest with one flipped bit in any of its bytes is refused."""
    path = manifest_path(store)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises((CorruptError, FormatError)):
            store.manifest(store.current())


def test_every_truncation_is_refused(store: Store) -> None:
    """A manifest that was cut off anywhere is refused."""
    path = manifest_path(store)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(CorruptError):
            store.manifest(store.current())


def test_a_manifest_that_cannot_be_read(store: Store) -> None:
    """A manifest that cannot be read is damage of its generation alone: the rest is listed and verified."""
    broken = store.generations()[0]
    sound = refresh(store, documents(3)).name
    path = store.path / GENERATIONS / f"{broken}.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(CorruptError, match="cannot be read"):
        store.manifest(broken)
    assert {name: problem is None for name, problem in verify(store)} == {"CURRENT": True, broken: False, sound: True}
    assert [(one.name, one.problem is None) for one in list_generations(store)] == [(broken, False), (sound, True)]


def segment(change: Callable[[Fields], object]) -> Callable[[Fields], object]:
    """A change of the manifest's first segment."""
    return lambda fields: change(fields["segments"][0])


def field(name: str, value: object) -> Callable[[Fields], object]:
    """A change of one field."""
    return lambda fields: fields.update({name: value})


def file_field(name: str, value: object) -> Callable[[Fields], object]:
    """A change of what the manifest says of the segment's file."""
    return segment(lambda entry: entry["files"]["data.mdb"].update({name: value}))


def counts(claimed: int) -> Callable[[Fields], object]:
    """A change of both counts of documents."""
    return lambda fields: (field("documents", claimed)(fields), segment(field("documents", claimed))(fields))


HOSTILE: dict[str, Callable[[Fields], object]] = {
    "huge dimension": field("dimension", 2**40),
    "dimension over the limit": field("dimension", 2**16 + 1),
    "no dimension": field("dimension", 0),
    "negative dimension": field("dimension", -16),
    "dimension of the wrong size": field("dimension", 15),
    "twice the dimension": field("dimension", 32),
    "dimension as text": field("dimension", "16"),
    "dimension as a fraction": field("dimension", 16.0),
    "dimension as a boolean": field("dimension", True),
    "dimension missing": lambda fields: fields.pop("dimension"),
    "other encoding": field("encoding", "float16"),
    "unknown encoding": field("encoding", "float8"),
    "encoding with scales that are not there": field("encoding", "uint8"),
    "encoding as a list": field("encoding", ["float32"]),
    "fixed_step as text": field("fixed_step", "no"),
    "other id type": field("id_type", "integer"),
    "unknown id type": field("id_type", "uuid"),
    "negative seed": field("seed", -1),
    "seed beyond 64 bits": field("seed", 2**64),
    "seed as text": field("seed", "0"),
    "seed as a fraction": field("seed", 0.5),
    "other number": field("number", 2),
    "number as text": field("number", "1"),
    "more documents than rows": lambda fields: (
        field("documents", 21)(fields),
        segment(field("documents", 21))(fields),
    ),
    "fewer documents than rows": lambda fields: (
        field("documents", 19)(fields),
        segment(field("documents", 19))(fields),
    ),
    "documents that do not add up": field("documents", 21),
    "documents that are not all there": field("documents", 19),
    "documents as a fraction": field("documents", 20.0),
    "tombstones in the oldest segment": segment(field("deleted", 3)),
    "negative tombstones": segment(field("deleted", -1)),
    "endless tombstones": segment(field("deleted", float("inf"))),
    "tombstones that are no number": segment(field("deleted", float("nan"))),
    "endless documents": segment(field("documents", float("inf"))),
    "no segments": field("segments", []),
    "a segment twice": lambda fields: fields.update(segments=fields["segments"] * 2),
    "an empty segment": lambda fields: fields["segments"].insert(
        0, fields["segments"][0] | {"id": "0" * 32, "documents": 0}
    ),
    "a newer segment that is missing": lambda fields: fields["segments"].insert(
        0, fields["segments"][0] | {"id": "0" * 32, "documents": 1}
    ),
    "countless documents": counts(2**70),
    "no documents": counts(0),
    "negative documents": counts(-1),
    "documents as text": segment(field("documents", "20")),
    "path as segment": segment(field("id", "../../../etc")),
    "absolute path as segment": segment(field("id", "/etc")),
    "segment with a newline": segment(lambda entry: entry.update(id=entry["id"] + "\n")),
    "segment as a number": segment(field("id", 5)),
    "segment that is missing": segment(field("id", "0" * 32)),
    "segment without a file": segment(lambda entry: entry["files"].clear()),
    "another file": segment(lambda entry: entry.update(files={"../x": entry["files"]["data.mdb"]})),
    "segments as text": field("segments", "none"),
    "size that lies": file_field("size", 4096),
    "negative size": file_field("size", -1),
    "size as text": file_field("size", "4096"),
    "checksum that lies": file_field("xxh3_128", "0" * 32),
    "checksum as a number": file_field("xxh3_128", 0),
    "more of a file": file_field("mode", "0777"),
    "fingerprint as a number": field("fingerprint", 5),
    "model as a number": field("model", 5),
    "model missing": lambda fields: fields.pop("model"),
    "time as text": field("created_ms", "yesterday"),
    "watermark as a list": field("watermark_ms", []),
    "path as parent": field("parent", "../../x"),
    "parent as a number": field("parent", 5),
    "quality as a list": field("quality", [1]),
    "writer as a number": field("writer", 5),
    "unknown field": field("colour", "red"),
    "older format": field("format", 0),
    "format as text": field("format", "1"),
    "format missing": lambda fields: fields.pop("format"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_manifest_that_lies_is_refused(store: Store, change: Callable[[Fields], object]) -> None:
    """A manifest whose checksum is right and whose content is not is refused when it is opened, verified or listed."""
    sound = store.current()
    name = forge(store, change)
    with pytest.raises(CorruptError):
        store.open(name)
    assert {checked for checked, problem in verify(store) if problem is None} - {"CURRENT"} == {sound}
    assert [listed.name for listed in list_generations(store) if listed.current] == [name]


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"5", b'"text"', b"{}", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_manifest_is_refused(store: Store, content: bytes) -> None:
    """Bytes that are no manifest are refused, though the name fits them."""
    name = f"000002-{hashlib.sha256(content).hexdigest()[:8]}"
    (store.path / GENERATIONS / f"{name}.json").write_bytes(content)
    with pytest.raises(CorruptError):
        store.manifest(name)


@pytest.mark.parametrize("text", [b"\\ud800", b"\xed\xa0\x80"])
def test_half_a_character_is_refused(store: Store, text: bytes) -> None:
    """A manifest with a text that no file can hold in UTF-8 is refused like any other that is not as it should be."""
    content = manifest_path(store).read_bytes().replace(SOFTWARE.encode(), text)
    name = f"000002-{hashlib.sha256(content).hexdigest()[:8]}"
    (store.path / GENERATIONS / f"{name}.json").write_bytes(content)
    with pytest.raises(CorruptError, match="is not a manifest"):
        store.manifest(name)


def test_other_spelling_is_refused(store: Store) -> None:
    """A manifest has one spelling, so that its name means the same bits everywhere."""
    content = json.dumps(json.loads(manifest_path(store).read_bytes())).encode()
    name = f"000001-{hashlib.sha256(content).hexdigest()[:8]}"
    (store.path / GENERATIONS / f"{name}.json").write_bytes(content)
    with pytest.raises(CorruptError, match=f"it would be {store.current()}"):
        store.manifest(name)


@pytest.mark.parametrize(
    "change",
    [
        field("format", 2),
        lambda fields: fields.update(format=2, colour="red", segments={}),
    ],
)
def test_a_newer_format_says_update(store: Store, change: Callable[[Fields], object]) -> None:
    """A generation that a newer version wrote is refused with the advice to update, by a refresh too, which changes
    nothing.
    """
    name = forge(store, change)
    before = tree(store.path)
    with pytest.raises(FormatError, match="update"):
        store.open(name)
    with pytest.raises(FormatError, match="update"):
        refresh(store, documents(3))
    assert tree(store.path) == before


@pytest.mark.parametrize("name", ["000009-00000000", "../CURRENT", "", "000001", "x" * 300, "000001-00000000\x00"])
def test_a_generation_that_is_missing(store: Store, name: str) -> None:
    """Asking for a generation that is not there lists those that are."""
    with pytest.raises(GenerationNotFoundError, match=store.current()):
        store.open(name)


def test_other_files_are_no_generations(store: Store) -> None:
    """Files that are not named as manifests are, such as a replacement that was interrupted, are no generations."""
    for name in (".000002-00000000.json.5.tmp", "000002.json", "notes.json", "000002-0000000g.json", "000003-00000000"):
        (store.path / GENERATIONS / name).write_text("{}")
    assert store.generations() == [store.current()]
