"""Segments: parts that read as one, and damage that is refused before LMDB sees it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from store_cases import data_file, documents, embeddings, flip, forge, holds, refresh

from store import format as fmt
from store.errors import CorruptError, StoreError
from store.maintenance import rollback
from store.segment import Columns, write_segment
from store.store import Store
from store.verification import verify

# Enough that every array is larger than a page, so that it has pages of its own.
ROWS = 600


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound store that no test may change."""
    path = tmp_path_factory.mktemp("segment") / "store"
    refresh(Store(path), documents(ROWS), encoding="uint8")
    return path


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Store:
    """A copy of it to damage."""
    return Store(shutil.copytree(original, tmp_path / "store"))


@pytest.fixture(scope="module")
def regions(original: Path) -> dict[str, int]:
    """For each kind of bytes in a segment's file, where one of them is."""
    file = data_file(Store(original))
    content = file.read_bytes()
    found = {"meta page 0": 40, "meta page 1": PAGESIZE + 40, "last byte": len(content) - 1}
    with lmdb.open(str(file.parent), readonly=True, lock=False, max_dbs=3) as env, env.begin() as transaction:
        for name in (fmt.VECTORS, fmt.INDEX, fmt.DOCUMENTS):
            for key, value in transaction.cursor(env.open_db(name, txn=transaction)):
                start = content.index(value)
                label = f"{name.decode()}/{key.decode()}"
                found |= {label: start + len(value) // 2, f"page header of {label}": start - fmt.PAGE_HEADER + 8}
            found[f"tree of {name.decode()}"] = content.index(name)
    return found


OPEN_AND_VERIFY = """
import sys
from pathlib import Path
from store.errors import CorruptError
from store.verification import verify
from store.store import Store

for path in sys.argv[1:]:
    store = Store(Path(path))
    try:
        store.open(store.current())
        print("opened")
    except CorruptError as error:
        named = any("data.mdb" in str(problem) for _, problem in verify(store) if problem is not None)
        print("refused" if named and "data.mdb" in str(error) else f"does not name the file: {error}")
"""


def opened_in_a_process(stores: list[Path]) -> list[str]:
    """What becomes of opening and verifying each store, in a process that damage may kill."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN_AND_VERIFY, *map(str, stores)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def damaged(original: Path, folder: Path, damages: list[Callable[[Path], object]]) -> list[Path]:
    """A copy of the store for each damage, done to its data file."""
    copies = []
    for number, damage in enumerate(damages):
        copies.append(shutil.copytree(original, folder / str(number)))
        damage(data_file(Store(copies[-1])))
    return copies


def cut(size: int) -> Callable[[Path], object]:
    """Cuts a file off after `size` bytes."""
    return lambda file: file.write_bytes(file.read_bytes()[:size])


def zeroed(page: int) -> Callable[[Path], object]:
    """Zeroes a page of a file."""

    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[page * PAGESIZE : (page + 1) * PAGESIZE] = bytes(PAGESIZE)
        file.write_bytes(content)

    return damage


def test_a_flipped_byte_anywhere_is_refused(original: Path, regions: dict[str, int], tmp_path: Path) -> None:
    """A flipped bit in any value, page header, tree or meta page is refused before the file is mapped, by name."""
    assert len(regions) >= 3 + 3 + 2 * 9
    flips: list[Callable[[Path], object]] = [partial(flip, at=at) for at in regions.values()]
    outcomes = opened_in_a_process(damaged(original, tmp_path, flips))
    assert dict(zip(regions, outcomes, strict=True)) == dict.fromkeys(regions, "refused")


def test_a_file_cut_off_anywhere_is_refused(original: Path, tmp_path: Path) -> None:
    """A file that was cut off, at a page or within one, is refused and kills nobody."""
    size = data_file(Store(original)).stat().st_size
    places = np.random.default_rng(0).integers(1, size, 8).tolist()
    sizes = [0, 1, PAGESIZE, 2 * PAGESIZE, size - PAGESIZE, size - 1, *places]
    outcomes = opened_in_a_process(damaged(original, tmp_path, [cut(size) for size in sizes]))
    assert outcomes == ["refused"] * len(sizes)


def test_a_zeroed_page_is_refused(original: Path, tmp_path: Path) -> None:
    """A page of zeros in place of any page that is not zeros already is refused."""
    content = data_file(Store(original)).read_bytes()
    pages = [page for page in range(len(content) // PAGESIZE) if any(content[page * PAGESIZE : (page + 1) * PAGESIZE])]
    outcomes = opened_in_a_process(damaged(original, tmp_path, [zeroed(page) for page in pages]))
    assert outcomes == ["refused"] * len(pages)


def test_a_longer_file_is_refused(store: Store) -> None:
    """A file that something was appended to is not the one that was written."""
    with data_file(store).open("ab") as file:
        file.write(bytes(PAGESIZE))
    with pytest.raises(CorruptError, match=r"data\.mdb has .* bytes, not the"):
        store.open(store.current())


def test_a_missing_file_is_refused(store: Store) -> None:
    """A segment without its file is damage, whether it was opened before or not."""
    store.open(store.current()).close()
    data_file(store).unlink()
    for again in (store, Store(store.path)):
        with pytest.raises(CorruptError, match=r"data\.mdb cannot be read"):
            again.open(again.current())


def test_a_file_that_changed_is_checked_again(store: Store) -> None:
    """A segment whose file was damaged after it was closed is checked again, and refused."""
    store.open(store.current()).close()
    cut(5 * PAGESIZE)(data_file(store))
    with pytest.raises(CorruptError):
        store.open(store.current())


def test_verify_finds_what_quick_checks_cannot(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` compares sha256 too, so it finds damage that xxh3 would miss."""
    recorded = store.manifest(store.current()).segments[0].file.xxh3_128
    flip(data_file(store), 3 * PAGESIZE + 100)
    monkeypatch.setattr("store.files.xxhash.xxh3_128", lambda: _Constant(recorded))
    problems = [str(problem) for _, problem in verify(store) if problem is not None]
    assert len(problems) == 1
    assert "checksum differs" in problems[0]


class _Constant:
    """A checksum that is always the same."""

    def __init__(self, hexdigest: str) -> None:
        self._hexdigest = hexdigest

    def update(self, chunk: memoryview) -> None:
        """Takes no notice."""

    def hexdigest(self) -> str:
        """What it was told."""
        return self._hexdigest


def test_verify_finds_an_index_that_disagrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` finds a segment that was written wrong, though every checksum is right."""
    store = Store(tmp_path)
    refresh(store, documents(3))

    def with_keys_of_other_rows(**columns: Any) -> Columns:
        return Columns(**(columns | {"keys": columns["keys"][::-1].copy()}))

    monkeypatch.setattr("store.writer.Columns", with_keys_of_other_rows)
    refresh(store, documents(4))
    first, _ = store.generations()
    problems = {name: str(problem) for name, problem in verify(store) if problem is not None}
    assert list(problems) == [store.current()]
    assert "its index and its documents disagree" in problems[store.current()]
    assert str(data_file(store)) in problems[store.current()]
    rollback(store)
    assert store.current() == first


def test_generations_share_an_open_segment(store: Store) -> None:
    """A generation can be opened many times at once; the last one that closes it unmaps it."""
    first, second = store.open(store.current()), store.open(store.current())
    assert first.stack.segments[0] is second.stack.segments[0]
    first.close()
    assert second.locate(["document-1"]).found.all()
    second.close()
    store.open(store.current()).close()


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.update(dimension=32),
        lambda fields: fields.update(encoding="float32", dimension=4),
        lambda fields: fields.update(fixed_step=True),
        lambda fields: fields.update(id_type="integer"),
        lambda fields: (fields.update(documents=1), fields["segments"][0].update(documents=1)),
        lambda fields: fields["segments"][0]["files"]["data.mdb"].update(size=4096),
        lambda fields: fields["segments"][0]["files"]["data.mdb"].update(sha256="0" * 64),
    ],
)
def test_an_open_segment_is_what_its_manifest_says(store: Store, change: Callable[[dict[str, Any]], object]) -> None:
    """A second manifest that describes an open segment otherwise is refused, and readers of the first go on."""
    generation = store.open(store.current())
    name = forge(store, change)
    with pytest.raises(CorruptError, match=str(data_file(store, generation.name))):
        store.open(name)
    read_ND = generation.read(generation.locate(["document-7"]))
    np.testing.assert_allclose(read_ND, embeddings(["text 7"]), atol=1 / 250)
    generation.close()


def test_two_stores_for_one_folder(store: Store) -> None:
    """A second `Store` in the process cannot open what the first has open, which is not called damage."""
    generation = store.open(store.current())
    second = Store(store.path)
    with pytest.raises(StoreError, match="share it") as refusal:
        second.open(second.current())
    assert not isinstance(refusal.value, CorruptError)
    generation.close()
    second.open(second.current()).close()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Lets the writer cut vectors into parts of 7 rows of float32."""
    part_bytes = 7 * 16 * 4 + 5
    monkeypatch.setattr(write_segment, "__kwdefaults__", {"part_bytes": part_bytes})
    return 7


@pytest.mark.parametrize("count", [1, 6, 7, 8, 14, 50, 700])
def test_parts_read_as_one(tmp_path: Path, small_parts: int, count: int) -> None:
    """Vectors cut into parts are looked up, scanned, warmed and reused as if they were one value."""
    store, chosen = Store(tmp_path), documents(count)
    refresh(store, chosen)
    assert holds(store, chosen)
    assert refresh(store, chosen[::-1]).encoded == []
    assert holds(store, chosen)
    generation = store.open(store.current())
    generation.warm()
    scanned = list(generation.scan(4))
    assert sum(len(block) for _, block in scanned) == count
    assert {len(block) for _, block in scanned} <= {1, 2, 3, 4}
    ids = generation.ids(np.arange(count))
    expected = embeddings([f"text {str(id_).removeprefix('document-')}" for id_ in ids])
    np.testing.assert_array_equal(np.concatenate([block for _, block in scanned]), expected)
    generation.close()
    with lmdb.open(str(data_file(store).parent), readonly=True, lock=False, max_dbs=3) as env, env.begin() as txn:
        assert txn.stat(env.open_db(fmt.VECTORS, txn=txn))["entries"] == -(-count // small_parts)
    assert [problem for _, problem in verify(store)] == [None] * 3


def test_a_segment_has_no_slack(original: Path) -> None:
    """The file ends with the last page that LMDB uses: what a copy has to move is what was written."""
    size = data_file(Store(original)).stat().st_size
    arrays = ROWS * (16 + 8 + 4 + 8 + 16 + 8 + 4 + 4) + 4 * 1025 + sum(len(d.id) for d in documents(ROWS))
    assert arrays < size < arrays + 20 * PAGESIZE
    assert size % PAGESIZE == 0
