"""Servers' generations, followed by a watch, with bundles that a test holds back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from scorer_server.metrics import Metrics
from scorer_server.settings import Settings
from scorer_server.snapshots import Snapshots
from store.maintenance import rollback
from store.manifest import Manifest
from store.store import Store
from tests.unit import store_cases
from tests.unit.batcher_cases import D
from tests.unit.scoring_cases import KIND, CrossingRuntime
from twinbert.errors import BundleError

IDS = [f"d{number}" for number in range(200)]
FORCED = {"gate": {"forced": True}}


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


async def serves(snapshots: Snapshots, name: str) -> None:
    """Returns when the generation is served."""
    await until(lambda: snapshots.current.generation.name == name)


def refused(metrics: Metrics, reason: str = "error") -> float | None:
    return metrics.registry.get_sample_value("twinbert_generation_refused", {"reason": reason})


def published_with(store: Store, ids: Sequence[Any], quality: dict[str, Any], **settings: Any) -> str:
    """Publishes documents whose embeddings do not matter; returns the generation's name."""
    into = store_cases.writer(store, **KIND, **settings)
    chosen = [store_cases.Document(id_, str(id_)) for id_ in ids]
    with into:
        batch = store_cases.batch_of(chosen)
        known_N = into.add_known(batch)
        into.add(batch.take(~known_N), store_cases.embeddings([one.text for one in chosen], D)[~known_N])
        with into.seal():
            pass
        return into.publish(quality)


async def overtaken(snapshots: Snapshots, store: Store, bundles: Bundles, first: str, ids: list[str] = IDS) -> str:
    """Publishes what takes until its release to open, and rolls back to `first` meanwhile; returns its name."""
    name = published_with(store, ids, {"bundle": "late"})
    await until(bundles.holding.is_set)
    rollback(store, first)
    await serves(snapshots, first)
    return name
