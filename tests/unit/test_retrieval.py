"""Who is let in to Retrieve: scans run one at a time, and what would be late is refused before it waits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scorer_server.batcher import Batcher
from scorer_server.metrics import Metrics
from scorer_server.retrieval import Retriever
from scorer_server.settings import Settings
from scorer_server.snapshots import Snapshots
from store.store import Store
from tests.unit.scoring_cases import CrossingRuntime, published
from twinbert.errors import DeadlineError, QueueFullError
from twinbert.v1 import scorer_pb2 as pb


def run(folder: Path, test: Any, **changes: Any) -> None:
    async def main() -> None:
        store = Store(folder / "store")
        published(store)
        runtime: Any = CrossingRuntime()
        settings, metrics = Settings(engines=1, threads=1, **changes), Metrics()
        snapshots = Snapshots(store, SimpleNamespace(runtime=lambda _: runtime), settings, metrics)
        batcher = Batcher(settings, metrics)
        retriever = Retriever(snapshots, batcher, settings, metrics)
        try:
            await asyncio.wait_for(test(retriever, runtime), 60)
        finally:
            runtime.gate.set()
            batcher.close()
            retriever.close()
            await snapshots.close()

    asyncio.run(main())


def request(query: str) -> pb.RetrieveRequest:
    return pb.RetrieveRequest(queries=[query], limit=2)


async def waiting(retriever: Retriever, runtime: CrossingRuntime, query: str) -> asyncio.Future[pb.RetrieveResponse]:
    """A request that is being answered, and stays so until the runtime's gate is opened."""
    future = asyncio.ensure_future(retriever.retrieve(request(query), None))
    while not runtime.batches:
        await asyncio.sleep(0)
    return future


def test_requests_that_wait_for_a_scan_are_bounded(tmp_path: Path) -> None:
    """One more is refused and told when to try again; when another was answered, or given up, there is room."""

    async def test(retriever: Retriever, runtime: CrossingRuntime) -> None:
        first = await waiting(retriever, runtime, "first")
        second = asyncio.ensure_future(retriever.retrieve(request("second"), None))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="2 Retrieve requests are waiting, which is the limit") as caught:
            await retriever.retrieve(request("third"), None)
        assert (caught.value.what, caught.value.retry_after_s > 0) == ("retrievals", True)
        second.cancel()
        await asyncio.wait((second,))
        fourth = asyncio.ensure_future(retriever.retrieve(request("fourth"), None))
        runtime.gate.set()
        assert [len(one.results[0].hits) for one in await asyncio.gather(first, fourth)] == [2, 2]
        assert len((await retriever.retrieve(request("fifth"), None)).results) == 1

    run(tmp_path, test, retrievals=2)


def test_a_scan_that_would_come_too_late_is_refused_at_once(tmp_path: Path) -> None:
    """By the duration of the last scan, its own counted; who has time, or finds nobody ahead, is let in."""

    async def test(retriever: Retriever, runtime: CrossingRuntime) -> None:
        retriever._scan_s = 100.0
        first = await waiting(retriever, runtime, "first")
        with pytest.raises(DeadlineError, match=r"1 Retrieve requests are ahead.*has 190\.000 s left") as caught:
            await retriever.retrieve(request("second"), 190.0)
        assert (caught.value.what, caught.value.retry_after_s) == ("deadline", 100)
        third = asyncio.ensure_future(retriever.retrieve(request("third"), 210.0))
        await asyncio.sleep(0)
        runtime.gate.set()
        await asyncio.gather(first, third)
        retriever._scan_s = 100.0
        assert len((await retriever.retrieve(request("alone"), 60.0)).results) == 1

    run(tmp_path, test)
