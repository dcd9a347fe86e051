"""A scorer over a store of five documents, with an engine whose gate the test holds."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np

from scorer_server.batcher import Batcher
from scorer_server.metrics import Metrics
from scorer_server.sampling import Samplers
from scorer_server.scoring import Scorer
from scorer_server.settings import Settings
from scorer_server.snapshots import Snapshots
from store.documents import Batch
from store.store import Store
from store.writer import digests
from tests.unit.batcher_cases import D, GatedRuntime

KIND: dict[str, Any] = {"dimension": D, "fingerprint": "f" * 64, "model": "m" * 64}
"""Of rows that `CrossingRuntime` may serve."""


class CrossingRuntime(GatedRuntime):
    """A gated engine with a crossing: the score is the product of the first components over 100."""

    bundle = SimpleNamespace(**KIND, default_crossing="cosine", crossings={"cosine": None})

    def cross(self, queries_QD: Any, documents_ND: Any, task_N: Any, crossing: str | None = None) -> Any:
        return queries_QD[task_N, 0] * documents_ND[:, 0] / 100


def published(store: Store) -> str:
    """Publishes five documents, d0 to d4; returns the generation's name."""
    ids = [f"d{number}" for number in range(5)]
    with store.writer(
        **KIND,
        encoding="float32",
        fixed_step=False,
        id_type="string",
        software="test",
    ) as writer:
        batch = Batch(ids=ids, digests=digests(ids), times=np.zeros(5, dtype=np.int64), positions=np.arange(5))
        known_N = writer.add_known(batch)
        if not known_N.all():
            writer.add(batch, np.arange(5 * D, dtype=np.float32).reshape(5, D))
        with writer.seal():
            pass
        return writer.publish({})


def run(store: Store, test: Any, **changes: Any) -> None:
    async def main() -> None:
        runtime: Any = CrossingRuntime()
        settings, metrics = Settings(engines=1, threads=1, hold_seconds=0, **changes), Metrics()
        snapshots = Snapshots(store, SimpleNamespace(runtime=lambda _: runtime), settings, metrics)
        batcher = Batcher(settings, metrics)
        scorer = Scorer(snapshots, batcher, settings, metrics, Samplers())
        try:
            await asyncio.wait_for(test(scorer, runtime, metrics), 60)
        finally:
            runtime.gate.set()
            batcher.close()
            scorer.close()
            await snapshots.close()

    asyncio.run(main())
