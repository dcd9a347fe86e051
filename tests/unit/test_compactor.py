"""The encoder's compactor on a real store, beside deltas, damage and another compaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from store_cases import Document, data_file, delta, documents, flip, holds, refresh

from encoder_server import compactor as module
from encoder_server.compactor import Compactor
from encoder_server.metrics import Metrics
from encoder_server.settings import Settings
from store.files import FileEntry, locked
from store.format import COMPACTION
from store.store import Store

DOCUMENTS = documents(20)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of one segment, which is looked at all the time."""
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.001)
    made = Store(tmp_path / "store")
    refresh(made, DOCUMENTS)
    return made


def run(store: Store, test: Callable[[Metrics], Awaitable[None]]) -> None:
    """Runs a test beside a compactor that allows two segments."""

    async def main() -> None:
        metrics = Metrics()
        watching = asyncio.ensure_future(Compactor(store, Settings(max_segments=2), metrics).watch())
        try:
            await asyncio.wait_for(test(metrics), 60)
        finally:
            watching.cancel()
            await asyncio.wait((watching,))

    asyncio.run(main())


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """A series of the encoder."""
    return metrics.registry.get_sample_value(f"twinbert_encoder_{name}", labels)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the compactor work until something is so."""
    while not condition():
        await asyncio.sleep(0.001)


def change(store: Store, number: int) -> None:
    """A delta of one document."""
    delta(store, [Document("document-0", f"version {number}")])


def segments(store: Store) -> int:
    """How many the current generation has."""
    return len(store.manifest(store.current()).segments)


def test_what_is_current_is_verified_ahead(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delta that comes to an encoder does not wait for the store to be read: that was done when it was seen."""
    checked: list[Path] = []

    def check(entry: FileEntry, path: Path, **settings: object) -> None:
        real(entry, path, **settings)  # type: ignore[arg-type]  # passed through
        checked.append(path)

    real = FileEntry.check
    monkeypatch.setattr(FileEntry, "check", check)
    fresh = Store(store.path)

    async def test(_metrics: Metrics) -> None:
        await until(lambda: len(checked) == 1)
        fresh.open(fresh.current()).close()
        assert checked == [data_file(store)]

    run(fresh, test)


def test_the_segments_stay_few(store: Store) -> None:
    """Whoever publishes deltas, they are merged as soon as there are too many; the metrics show what is current."""

    async def test(metrics: Metrics) -> None:
        await until(lambda: value(metrics, "segments") == 1)
        change(store, 1)
        await until(lambda: value(metrics, "segments") == 2)
        assert value(metrics, "dead_row_ratio") == pytest.approx(1 / 21)
        for number in range(2, 5):
            change(store, number)
        await until(lambda: segments(store) <= 2 and value(metrics, "segments") == segments(store))
        assert value(metrics, "compactions_total", outcome="published") >= 1  # type: ignore[operator]  # None fails too
        about = {"generation": store.current(), "model": "8d" * 32, "fingerprint": "fe" * 32}
        assert value(metrics, "generation_info", **about) == 1

    run(store, test)
    assert holds(store, [Document("document-0", "version 4"), *DOCUMENTS[1:]])


def test_a_damaged_segment_is_tried_once(store: Store) -> None:
    """What cannot be merged is counted and logged once, not at each look; another generation is looked at again."""
    for number in range(2):
        change(store, number)
    flip(data_file(store), 5000)
    fresh = Store(store.path)

    async def test(metrics: Metrics) -> None:
        await until(lambda: value(metrics, "compactions_total", outcome="failed") == 1)
        refresh(fresh, DOCUMENTS)
        for number in range(2):
            change(fresh, number)
        await until(lambda: value(metrics, "compactions_total", outcome="published") == 1)
        assert value(metrics, "compactions_total", outcome="failed") == 1

    run(fresh, test)


def test_beside_another_compaction(store: Store) -> None:
    """While somebody else compacts, it waits, and looks again."""
    for number in range(2):
        change(store, number)

    async def test(metrics: Metrics) -> None:
        with locked(store.path, "a compaction", file=COMPACTION):
            await until(lambda: value(metrics, "segments") == 3)
        await until(lambda: value(metrics, "compactions_total", outcome="published") == 1)

    run(store, test)
    assert segments(store) <= 2


def test_a_full_refresh_makes_it_pointless(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a full refresh comes in between, the compaction is counted as superseded, which is no failure."""
    for number in range(2):
        change(store, number)
    of = FileEntry.of

    def after_a_refresh(path: Path) -> FileEntry:
        entry = of(path)
        monkeypatch.setattr(FileEntry, "of", of)
        refresh(store, documents(3))
        return entry

    async def test(metrics: Metrics) -> None:
        await until(lambda: value(metrics, "compactions_total", outcome="superseded") == 1)
        assert value(metrics, "compactions_total", outcome="failed") == 0

    monkeypatch.setattr(FileEntry, "of", after_a_refresh)
    run(store, test)
    assert holds(store, documents(3))
