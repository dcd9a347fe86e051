"""Which generation answers, and what happens when another cannot."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from scorer_server import snapshots as module
from scorer_server.metrics import Metrics
from scorer_server.settings import Settings
from scorer_server.snapshots import Snapshots
from store.copying import copy
from store.errors import CorruptError, GenerationNotFoundError, NoGenerationError
from store.files import FileEntry
from store.maintenance import rollback
from store.manifest import Manifest
from store.store import Store
from tests.unit import store_cases
from tests.unit.batcher_cases import D
from tests.unit.test_scoring import CrossingRuntime, published
from twinbert.errors import BundleError


class Bundles:
    """The same runtime for each generation. For one whose `quality` has the bundle "late" finding it takes until
    `release` is set; for one that has "none" there is none.
    """

    def __init__(self) -> None:
        self.loaded: Any = CrossingRuntime()
        self.holding, self.release = threading.Event(), threading.Event()

    def runtime(self, manifest: Manifest) -> Any:
        """See `scorer_server.bundles.Bundles`."""
        said = manifest.quality.get("bundle")
        if said == "none":
            raise BundleError("there is none")
        if said == "late":
            self.holding.set()
            self.release.wait()
        return self.loaded


def run(store: Store, test: Any, bundles: Bundles | None = None, **settings: Any) -> None:
    async def main() -> None:
        metrics, found = Metrics(), bundles or Bundles()
        runtime = found.loaded
        snapshots = Snapshots(store, found, Settings(**({"poll_seconds": 0.01} | settings)), metrics)
        watching = asyncio.ensure_future(snapshots.watch())
        try:
            await asyncio.wait_for(test(snapshots, runtime, metrics), 60)
        finally:
            found.release.set()
            watching.cancel()
            await asyncio.wait((watching,))
            await snapshots.close()

    asyncio.run(main())


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def refused(metrics: Metrics, reason: str = "error") -> float | None:
    return metrics.registry.get_sample_value("twinbert_generation_refused", {"reason": reason})


def test_an_error_that_nobody_foresaw_does_not_end_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generation is refused, its files are let go, and the next try succeeds."""
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)
    store = Store(tmp_path / "store")
    first = published(store)

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        whole = runtime.cross

        def broken(*_: Any) -> Any:
            raise RuntimeError("can't start new thread")

        runtime.cross = broken
        second = published(store)
        await until(lambda: refused(metrics) == 1)
        assert snapshots.current.generation.name == first
        runtime.cross = whole
        await until(lambda: snapshots.current.generation.name == second)
        assert refused(metrics) == 0

    run(store, test)


def lacking(store: Store, ids: list[str], quality: dict[str, Any]) -> str:
    """Publishes documents whose embeddings do not matter."""
    into = store_cases.writer(store, dimension=D, fingerprint="f" * 64, model="m" * 64)
    chosen = [store_cases.Document(id_, id_) for id_ in ids]
    with into:
        batch = store_cases.batch_of(chosen)
        known_N = into.add_known(batch)
        into.add(batch.take(~known_N), store_cases.embeddings([one.text for one in chosen], D)[~known_N])
        with into.seal():
            pass
        return into.publish(quality)


def test_a_generation_that_lost_documents_is_refused_unless_someone_wants_it(tmp_path: Path) -> None:
    """More than the set share of what is served: refused, said and not tried again; forced, or rolled back to, it is
    served. A generation that is small is served whatever it lacks.
    """
    store = Store(tmp_path / "store")
    ids = [f"d{number}" for number in range(200)]
    small = lacking(store, [f"x{number}" for number in range(50)], {})

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        async def serves(name: str) -> None:
            await until(lambda: snapshots.current.generation.name == name)
            assert snapshots.refusal is None
            assert refused(metrics, "documents_lost") == 0

        assert snapshots.current.generation.name == small
        whole = lacking(store, ids, {})
        await serves(whole)
        most = lacking(store, ids[50:], {})
        await serves(most)
        other_ids = lacking(store, [f"y{number}" for number in range(200)], {"gate": {"forced": False}})
        await until(lambda: refused(metrics, "documents_lost") == 1)
        assert snapshots.refusal is not None
        assert (snapshots.refusal.name, snapshots.refusal.until) == (other_ids, float("inf"))
        assert re.search("lacks 100.0% of the 150 documents.*30.0% may be missing.*--force", snapshots.refusal.message)
        assert snapshots.current.generation.name == most
        few = lacking(store, ids[:80], {"gate": {"forced": True}})
        await serves(few)
        await serves(lacking(store, ids, {}))
        rollback(store, small)
        await serves(small)

    run(store, test, hold_generations=0, hold_seconds=0)


IDS = [f"d{number}" for number in range(200)]
FORCED = {"gate": {"forced": True}}


def test_a_store_that_was_built_again_elsewhere_is_compared(tmp_path: Path) -> None:
    """Its generations have low numbers, and are no rollback: what lacks documents is refused when it is copied over."""
    store, elsewhere = Store(tmp_path / "store"), Store(tmp_path / "elsewhere")
    lacking(store, IDS, {})
    whole = lacking(store, IDS, {})
    other = lacking(elsewhere, IDS[:80], {})

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        copy(elsewhere, store)
        await until(lambda: refused(metrics, "documents_lost") == 1)
        assert snapshots.refusal is not None
        assert (snapshots.refusal.name, snapshots.current.generation.name) == (other, whole)

    run(store, test)


@pytest.mark.parametrize("case", ["forced unseen", "manifest gone", "forced long ago"])
def test_what_was_forced_and_never_seen_counts_for_what_follows(tmp_path: Path, case: str) -> None:
    """A replica that sees only what came after a forced generation serves it, if it can tell; but one that was forced
    before what is served excuses nothing.
    """
    store, elsewhere = Store(tmp_path / "store"), Store(tmp_path / "elsewhere")
    lacking(elsewhere, IDS, {})
    forced = lacking(elsewhere, IDS[:80], FORCED)
    if case == "forced long ago":
        lacking(elsewhere, IDS, {})
    else:
        rollback(elsewhere)
    whole, _ = copy(elsewhere, store)
    if case != "forced long ago":
        rollback(elsewhere, forced)
    last = lacking(elsewhere, IDS[:81], {})
    for name in elsewhere.generations():
        if name != forced or case != "manifest gone":
            shutil.copy(store_cases.manifest_path(elsewhere, name), store.path / "generations")

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        assert snapshots.current.generation.name == whole
        copy(elsewhere, store)
        if case == "forced unseen":
            await until(lambda: snapshots.current.generation.name == last)
        else:
            await until(lambda: refused(metrics, "documents_lost") == 1)
            assert snapshots.current.generation.name == whole

    run(store, test)


def test_a_rollback_is_followed_while_another_generation_is_opened(tmp_path: Path) -> None:
    """To one that is held at once, however long the opening takes; what was opened then is closed unserved, and what
    CURRENT names by then is opened.
    """
    store = Store(tmp_path / "store")
    first = published(store)
    bundles = Bundles()

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        second = published(store)
        await until(lambda: snapshots.current.generation.name == second)
        lacking(store, IDS, {"bundle": "late"})
        await until(bundles.holding.is_set)
        rollback(store, first)
        await until(lambda: snapshots.current.generation.name == first)
        fourth = published(store)
        bundles.release.set()
        await until(lambda: snapshots.current.generation.name == fourth)
        assert [one.generation.name for one in snapshots.held] == [fourth, first, second]
        assert metrics.registry.get_sample_value("twinbert_generation_swaps_total") == 3

    run(store, test, bundles)


def test_a_generation_that_was_rolled_back_while_it_was_opened_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is ready CURRENT is read again, and the generation is closed: nothing of it stays open."""
    store = Store(tmp_path / "store")
    first = published(store)
    bundles, opened, closed = Bundles(), Snapshots._open, threading.Event()

    def rolled_back(self: Snapshots, name: str, served: Any) -> Any:
        snapshot = opened(self, name, served)
        rollback(store, first)  # at the last moment
        close = snapshot.generation.close
        monkeypatch.setattr(snapshot.generation, "close", lambda: (close(), closed.set()))
        return snapshot

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        monkeypatch.setattr(Snapshots, "_open", rolled_back)
        lacking(store, IDS, {})
        await until(closed.is_set)
        assert snapshots.current.generation.name == first
        assert len(snapshots.held) == 1

    run(store, test, bundles)


def test_a_generation_is_compared_with_the_one_that_it_replaces(tmp_path: Path) -> None:
    """Where another is served by the time that it is ready, it is compared again, with that one."""
    store = Store(tmp_path / "store")
    first = lacking(store, IDS, {})
    bundles = Bundles()

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        second = lacking(store, IDS[:150], {})
        await until(lambda: snapshots.current.generation.name == second)
        third = lacking(store, IDS[:110], {"bundle": "late"})
        await until(bundles.holding.is_set)
        rollback(store, first)
        await until(lambda: snapshots.current.generation.name == first)
        rollback(store, third)
        bundles.release.set()
        await until(lambda: refused(metrics, "documents_lost") == 1)
        assert snapshots.current.generation.name == first

    run(store, test, bundles)


def test_what_is_served_stays_open_while_another_is_compared_with_it(tmp_path: Path) -> None:
    """A thread that opens a generation reads the one that it is to replace, though that may be let go meanwhile."""
    store = Store(tmp_path / "store")
    first = published(store)
    bundles = Bundles()

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        second = published(store)
        await until(lambda: snapshots.current.generation.name == second)
        served = snapshots.current.generation
        lacking(store, IDS, {"bundle": "late"})
        await until(bundles.holding.is_set)
        rollback(store, first)
        await until(lambda: snapshots.current.generation.name == first)
        snapshots._settings = dataclasses.replace(snapshots._settings, hold_generations=0, hold_seconds=0)
        await until(lambda: len(snapshots.held) == 1)
        assert served.read(served.locate(["d1"])).shape == (1, 4)
        bundles.release.set()
        await until(lambda: not hasattr(served.stack.segments[0], "index"))

    run(store, test, bundles)


@pytest.mark.parametrize("damage", ["segment", "manifest", "gone"])
def test_a_start_beside_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """Where the current generation does not verify, the latest before it is served that does and that has a bundle; the
    refusal is said from the first moment, and when the damage is mended the current one is served.
    """
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.05)
    store = Store(tmp_path / "store")
    published(store)
    good = lacking(store, IDS, {})
    lacking(store, IDS[:150], {"bundle": "none"})
    store_cases.flip(store_cases.data_file(store, lacking(store, IDS[:160], {})), 6000)
    current = lacking(store, IDS[:170], {})
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
        await until(lambda: snapshots.current.generation.name == current)
        assert snapshots.refusal is None
        assert refused(metrics, "unverified") == 0

    run(store, test)


def test_a_start_goes_back_where_a_rollback_would(tmp_path: Path) -> None:
    """To the parent: what an operator has left is not served again because what came after it is damaged."""
    store = Store(tmp_path / "store")
    first = published(store)
    lacking(store, IDS, {})
    rollback(store)
    store_cases.flip(store_cases.data_file(store, lacking(store, IDS[:9], {})), 5000)

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        assert snapshots.current.generation.name == first

    run(store, test)


def test_a_start_reads_damage_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where generations share the segment that is damaged, none of them is read to find that out again."""
    store = Store(tmp_path / "store")
    published(store)
    lacking(store, IDS, {})
    settings: dict[str, Any] = {"dimension": D, "fingerprint": "f" * 64, "model": "m" * 64}
    for _ in range(3):
        store_cases.delta(store, [store_cases.Deletion(f"d{_}")], **settings)
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
    names = [published(store), lacking(store, IDS, {})]
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


def test_generations_are_held_by_number_and_by_time(tmp_path: Path) -> None:
    """The latest superseded ones stay, and each for its time; then a request that names one is told what there is."""
    store = Store(tmp_path / "store")
    names = [published(store)]

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        for _ in range(3):
            names.append(published(store))
            await until(lambda: snapshots.current.generation.name == names[-1])
        await until(lambda: len(snapshots.held) == 2)
        assert [one.generation.name for one in snapshots.held] == names[:1:-1]
        with pytest.raises(GenerationNotFoundError, match=names[-2]), snapshots.hold(names[0]):
            pass

    run(store, test, hold_generations=1, hold_seconds=0)


def test_a_generation_in_use_stays_open(tmp_path: Path) -> None:
    """A request that holds one reads it to its end, whatever was published and let go meanwhile."""
    store = Store(tmp_path / "store")
    first = published(store)

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        with snapshots.hold("") as snapshot:
            generation = snapshot.generation
            name = published(store)
            await until(lambda: snapshots.current.generation.name == name)
            await until(lambda: len(snapshots.held) == 1)
            assert generation.name == first
            assert generation.read(generation.locate(["d1"])).shape == (1, 4)

    run(store, test, hold_generations=0, hold_seconds=0)


def test_a_thread_keeps_what_it_reads(tmp_path: Path) -> None:
    """A request that was given up does not take a generation from under the thread that still works for it."""
    store = Store(tmp_path / "store")
    published(store)

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        work = asyncio.get_running_loop().create_future()
        with snapshots.hold("") as snapshot:
            snapshots.keep(snapshot, work)
        name = published(store)
        await until(lambda: snapshots.current.generation.name == name and len(snapshots.held) == 1)
        assert snapshot.generation.read(snapshot.generation.locate(["d1"])).shape == (1, 4)
        work.set_result(None)
        await until(lambda: not hasattr(snapshot.generation.stack.segments[0], "index"))

    run(store, test, hold_generations=0, hold_seconds=0)
