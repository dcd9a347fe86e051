"""With which generation a server starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scorer_server import snapshots as module
from scorer_server.metrics import Metrics
from scorer_server.settings import Settings
from scorer_server.snapshots import Snapshots
from store.errors import CorruptError, FormatError, NoGenerationError
from store.files import FileEntry
from store.maintenance import rollback
from store.store import Store
from tests.unit import store_cases
from tests.unit.scoring_cases import KIND, published
from tests.unit.snapshot_cases import IDS, Bundles, published_with, refused, run, serves


@pytest.mark.parametrize("damage", ["segment", "manifest", "gone"])
def test_a_start_beside_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """Where the current generation does not verify, the latest before it is served that does and that has a bundle; the
    refusal is said from the first moment, and when the damage is mended the current one is served.
    """
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)
    store = Store(tmp_path / "store")
    published(store)
    good = published_with(store, IDS, {})
    published_with(store, IDS[:150], {"bundle": "none"})
    store_cases.flip(store_cases.data_file(store, published_with(store, IDS[:160], {})), 6000)
    current = published_with(store, IDS[:170], {})
    file = store_cases.manifest_path(store, current)
    file = store_cases.data_file(store, current) if damage == "segment" else file
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        store_cases.flip(file, 600)

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        assert snapshots.current.generation.name == good
        assert snapshots.refusal is not None
        assert (snapshots.refusal.name, snapshots.refusal.reason) == (current, "unverified")
        assert refused(metrics, "unverified") == 1
        file.write_bytes(content)
        await serves(snapshots, current)
        assert snapshots.refusal is None
        assert refused(metrics, "unverified") == 0

    run(store, test)


def test_a_start_beside_a_newer_version(tmp_path: Path) -> None:
    """What a newer version wrote is whole, and nothing else is served in its place: the line says what to update."""
    store = Store(tmp_path / "store")
    published(store)
    store_cases.forge(store, lambda fields: fields.update(format=2), number=2)
    with pytest.raises(FormatError, match="update"):
        started(store)


def test_a_start_goes_back_where_a_rollback_would(tmp_path: Path) -> None:
    """To the parent: what an operator has left is not served again because what came after it is damaged."""
    store = Store(tmp_path / "store")
    first = published(store)
    published_with(store, IDS, {})
    rollback(store)
    store_cases.flip(store_cases.data_file(store, published_with(store, IDS[:9], {})), 5000)

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        assert snapshots.current.generation.name == first

    run(store, test)


def test_a_start_reads_damage_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where generations share the segment that is damaged, none of them is read to find that out again."""
    store = Store(tmp_path / "store")
    published(store)
    published_with(store, IDS, {})
    for number in range(3):
        store_cases.delta(store, [store_cases.Deletion(f"d{number}")], **KIND)
    base = store.path / "segments" / store.manifest(store.current()).segments[-1].id / "data.mdb"
    store_cases.flip(base, 6000)
    checked, check = [], FileEntry.check

    def counting(self: FileEntry, path: Path, **options: Any) -> None:
        checked.append(path)
        check(self, path, **options)

    monkeypatch.setattr(FileEntry, "check", counting)

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        assert snapshots.current.generation.manifest.number == 1
        assert checked.count(base) == 1

    run(store, test, poll_seconds=60)


def test_a_start_without_anything_to_serve(tmp_path: Path) -> None:
    """Where no generation verifies, or CURRENT cannot be read, a server does not start."""
    store = Store(tmp_path / "store")
    store.create()
    with pytest.raises(NoGenerationError):
        started(store)
    names = [published(store), published_with(store, IDS, {})]
    for name in names:
        store_cases.flip(store_cases.data_file(store, name), 5000)
    with pytest.raises(CorruptError, match=str(store_cases.data_file(store, names[1]))):
        started(store)
    store_cases.flip(store_cases.data_file(store, names[0]), 5000)
    assert started(store).current.generation.name == names[0]
    (store.path / "CURRENT").write_text("nonsense")
    with pytest.raises(CorruptError, match="not a generation's name"):
        started(store)


def started(store: Store) -> Snapshots:
    bundles: Any = Bundles()
    return Snapshots(Store(store.path), bundles, Settings(), Metrics())
