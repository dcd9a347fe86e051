"""docs/store-format.md against real stores: its reader reads them, and it names everything that they contain."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xxhash
from store_cases import Deletion, Document, data_file, delta, embeddings, flip, forge, interrupt, refresh, tree

from store import encoding as encodings
from store import format as fmt
from store.building import ENTRY
from store.compaction import compact
from store.files import FileEntry
from store.format import U64
from store.maintenance import pin
from store.manifest import Manifest, SegmentEntry
from store.segment import write_segment
from store.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "store-format.md").read_text()
(LISTING,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that does not exist yet."""
    return Store(tmp_path / "store")


def reader(store: Store) -> Any:
    """The document's reader of a store."""
    listing: dict[str, Any] = {}
    exec(compile(LISTING, "docs/store-format.md", "exec"), listing)  # noqa: S102 - the document's own listing
    return listing["Reader"](store.path)


def test_the_reader_uses_nothing_of_ours() -> None:
    """The document's reader imports only what the document describes: LMDB, JSON, arrays and hashes."""
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name)
        for node in ast.walk(ast.parse(LISTING))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {"json", "hashlib", "pathlib", "lmdb", "numpy", "xxhash"}


@pytest.mark.parametrize("shape", ["one part", "parts", "deltas", "deltas in parts"])
@pytest.mark.parametrize("id_type", ["string", "integer"])
@pytest.mark.parametrize("stored", [("float32", False), ("float16", False), ("uint8", True), ("uint8", False)])
def test_the_reader_reads_a_store(
    store: Store, monkeypatch: pytest.MonkeyPatch, stored: tuple[str, bool], id_type: str, shape: str
) -> None:
    """Written from the document alone, the reader finds in a real store what our own reader finds, bit for bit, after
    deltas and a compaction too.
    """
    encoding, fixed_step = stored
    if "parts" in shape:
        row_bytes = encodings.codec(encoding, 16, fixed_step=fixed_step).row_bytes
        monkeypatch.setattr(write_segment, "__kwdefaults__", {"part_bytes": 5 * row_bytes})
    ids: list[Any] = [2**64 - 1 - 7 * i for i in range(33)] if id_type == "integer" else [f"é {i}" for i in range(33)]
    chosen = [Document(id_, f"text {i}", i - 5) for i, id_ in enumerate(ids)]
    settings: dict[str, Any] = {"encoding": encoding, "fixed_step": fixed_step, "id_type": id_type}
    if "deltas" in shape:
        extra = [
            Document(0 if id_type == "integer" else "é", "text"),
            Document(1 if id_type == "integer" else "x", "text"),
        ]
        refresh(store, [*chosen[:20], Document(ids[30], "an older text"), *extra], **settings)
        delta(store, [*chosen[15:31], *(Deletion(one.id) for one in extra)], **settings)
        delta(store, [*chosen[31:], Deletion(ids[3])], **settings)
        delta(store, [Deletion(extra[0].id), *chosen[3:4]], **settings)
        compact(store, software="tests 1", newest=2)
    else:
        refresh(store, chosen, **settings)

    read = reader(store)
    generation = store.open(store.current())
    ours_ND = generation.read(generation.locate(np.array(ids, U64) if id_type == "integer" else ids))
    generation.close()
    assert len(read.segments) == (3 if "deltas" in shape else 1)
    for document, ours_D in zip(chosen, ours_ND, strict=True):
        row = read.row(document.id)
        np.testing.assert_array_equal(read.embedding(*row), ours_D)
        assert read.document_id(*row) == document.id
        assert read.digest(*row) == hashlib.blake2b(document.text.encode(), digest_size=16).digest()
        assert read.time_ms(*row) == document.time_ms
    for absent in [0, 1, 2**63] if id_type == "integer" else ["", "é", "é 33"]:
        assert read.row(absent) is None
    if encoding == "float32":
        np.testing.assert_array_equal(ours_ND, embeddings([document.text for document in chosen]))


@pytest.mark.parametrize("id_type", ["string", "integer"])
def test_the_reader_follows_the_seed(store: Store, monkeypatch: pytest.MonkeyPatch, id_type: str) -> None:
    """The reader finds documents under a seed other than 0."""
    refresh(store, [Document(7 if id_type == "integer" else "7", "text")], id_type=id_type)
    monkeypatch.setattr("store.store.Manifest", lambda **fields: Manifest(**(fields | {"seed": 2**64 - 5})))
    chosen = [Document(i if id_type == "integer" else str(i), f"text {i}") for i in range(9)]
    other = Store(store.path.with_name("other"))
    refresh(other, chosen, id_type=id_type)
    read = reader(other)
    assert read.manifest["seed"] == 2**64 - 5
    for document in chosen:
        np.testing.assert_array_equal(read.embedding(*read.row(document.id)), embeddings([document.text])[0])


def test_the_reader_refuses_what_it_must(store: Store) -> None:
    """The reader's checks are those that the document asks for: manifest, segment, format."""
    refresh(store, [Document("a", "text")])
    path = data_file(store)
    flip(path, 5000)
    with pytest.raises(ValueError, match="segment is damaged"):
        reader(store)
    flip(path, 5000)
    manifest = store.path / fmt.GENERATIONS / f"{store.current()}.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content.replace(b"tests 1", b"tests 2"))
    with pytest.raises(ValueError, match="manifest is damaged"):
        reader(store)
    manifest.write_bytes(content)
    forge(store, lambda fields: fields.update(format=2))
    with pytest.raises(ValueError, match="newer"):
        reader(store)


def test_every_name_is_in_the_document() -> None:
    """Each database, key, file, encoding, id type and manifest field that the code has stands in the document."""
    names = {value.decode() for value in vars(fmt).values() if isinstance(value, bytes)}
    names |= {fmt.LOCK, fmt.COMPACTION, fmt.SWITCH, fmt.CURRENT, fmt.GENERATIONS, fmt.SEGMENTS, fmt.BUILDING, fmt.DATA}
    names |= {fmt.COMPACTION_DRAFT, "brief"}
    names |= {*fmt.ID_TYPES, *encodings.ENCODINGS, fmt.part_key(0).decode(), fmt.part_key(1).decode()}
    for described in (Manifest, SegmentEntry, FileEntry):
        names |= {field.name for field in dataclasses.fields(described)}
    names -= {"file"}  # `files` on disk
    names |= {"format", "files"}
    assert f"9f3c01ab{fmt.PIN}" in PAGE
    assert {name for name in names if not re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", PAGE)} == set()


def test_the_numbers_in_the_document() -> None:
    """The limits that the document states are those of the code."""
    assert f"This is format {fmt.FORMAT}." in PAGE
    assert f"0x{fmt.TOMBSTONE:X} is a tombstone" in PAGE
    assert f"1 to {fmt.MAX_ID_BYTES} bytes each" in PAGE
    assert f"0 to {fmt.MAX_ROWS:,}" in PAGE
    assert fmt.MAX_PART_BYTES == 4 * 2**30 - 64 * 2**10
    assert "4 GiB − 64 KiB" in PAGE
    assert f"{fmt.PAGE_HEADER} bytes behind the start of a page" in PAGE
    assert "1 to 65,536" in PAGE
    assert np.float32(2 / 255) == encodings.FIXED_STEP


def test_a_manifest_has_the_fields_of_the_document(store: Store) -> None:
    """The two tables of fields are exactly those of a manifest, and the bytes are spelt as the document says."""
    refresh(store, [Document("a", "text")])
    content = (store.path / fmt.GENERATIONS / f"{store.current()}.json").read_bytes()
    fields = json.loads(content)
    section = PAGE[PAGE.index("## Manifest") : PAGE.index("## Segment")]
    whole, of_segment = (re.findall(r"^\| `(\w+)`", part, re.MULTILINE) for part in section.split("Each segment is"))
    assert sorted(whole) == sorted(fields)
    assert sorted(of_segment) == sorted(fields["segments"][0])
    assert content == json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def test_the_files_are_those_of_the_document(store: Store) -> None:
    """A store has the files that the document lists, and no others; a build is named as it says."""
    refresh(store, [Document("a", "text")])
    pin(store, store.current())
    interrupt(store, [Document("b", "other")], encoding="uint8")
    patterns = [r"CURRENT", r"generations/\d{6}-[0-9a-f]{8}\.(json|pin)", r"segments/[0-9a-f]{32}/data\.mdb"]
    patterns.append(r"building/[0-9a-f]{16}/(vectors|entries|ids)\.bin")
    for path in tree(store.path):
        assert any(re.fullmatch(pattern, path) for pattern in patterns), path
    (build,) = (store.path / fmt.BUILDING).iterdir()
    identity = json.dumps(["fe" * 32, "uint8", False, 16, "refresh"])
    assert build.name == hashlib.sha256(identity.encode()).hexdigest()[:16]
    assert ENTRY.itemsize == 20
    assert (build / "entries.bin").stat().st_size == 20


def test_the_hash_is_xxh3() -> None:
    """The document keys of well-known strings are those of xxh3_64's reference implementation."""
    read = SimpleNamespace(manifest={"seed": 0})
    listing: dict[str, Any] = {}
    exec(compile(LISTING, "docs/store-format.md", "exec"), listing)  # noqa: S102 - the document's own listing
    assert listing["Reader"].key(read, "") == 0x2D06800538D394C2
    assert listing["Reader"].key(read, "abc") == xxhash.xxh3_64(b"abc").intdigest() == 0x78AF5F94892F3950
