"""Which generation answers, and what happens when another cannot."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scorer_server import snapshots as module
from scorer_server.metrics import Metrics
from scorer_server.settings import Settings
from scorer_server.snapshots import Snapshots
from store.errors import GenerationNotFoundError
from store.maintenance import rollback
from store.store import Store
from tests.unit import store_cases
from tests.unit.batcher_cases import D
from tests.unit.test_scoring import CrossingRuntime, published


def run(store: Store, test: Any, **settings: Any) -> None:
    async def main() -> None:
        runtime: Any = CrossingRuntime()
        metrics = Metrics()
        bundles = SimpleNamespace(runtime=lambda _: runtime)
        snapshots = Snapshots(store, bundles, Settings(poll_seconds=0.01, **settings), metrics)
        watching = asyncio.ensure_future(snapshots.watch())
        try:
            await asyncio.wait_for(test(snapshots, runtime, metrics), 60)
        finally:
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
