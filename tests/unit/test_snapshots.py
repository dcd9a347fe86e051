"""Which generation answers, and for how long one is held."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from scorer_server import snapshots as module
from scorer_server.metrics import Metrics
from scorer_server.snapshots import Snapshots
from store.errors import GenerationNotFoundError
from store.store import Store
from tests.unit.scoring_cases import published
from tests.unit.snapshot_cases import Bundles, overtaken, refused, run, serves, until


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
        await serves(snapshots, second)
        assert refused(metrics) == 0

    run(store, test)


def test_what_is_served_stays_open_while_another_is_compared_with_it(tmp_path: Path) -> None:
    """A thread that opens a generation reads the one that it is to replace, though that may be let go meanwhile."""
    store = Store(tmp_path / "store")
    first = published(store)
    bundles = Bundles()

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        second = published(store)
        await serves(snapshots, second)
        served = snapshots.current.generation
        await overtaken(snapshots, store, bundles, first)
        snapshots._settings = dataclasses.replace(snapshots._settings, hold_generations=0, hold_seconds=0)
        await until(lambda: len(snapshots.held) == 1)
        assert served.read(served.locate(["d1"])).shape == (1, 4)
        bundles.release.set()
        await until(lambda: not hasattr(served.stack.segments[0], "index"))

    run(store, test, bundles)


def test_generations_are_held_by_number_and_by_time(tmp_path: Path) -> None:
    """The latest superseded ones stay, and each for its time; then a request that names one is told what there is."""
    store = Store(tmp_path / "store")
    names = [published(store)]

    async def test(snapshots: Snapshots, runtime: Any, metrics: Metrics) -> None:
        for _ in range(3):
            names.append(published(store))
            await serves(snapshots, names[-1])
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
            await serves(snapshots, name)
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
