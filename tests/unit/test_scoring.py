"""Deadlines and partial answers of Score, with an engine whose gate the test holds."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scorer_server.metrics import Metrics
from scorer_server.scoring import Scorer
from store.store import Store
from tests.unit.scoring_cases import CrossingRuntime, published, run
from twinbert.errors import DeadlineError, QueueFullError
from twinbert.v1 import scorer_pb2 as pb


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    published(store)
    return store


def request(*queries: str) -> pb.ScoreRequest:
    tasks = [pb.ScoreTask(query=query, document_ids=["d1", "none", "d2"]) for query in queries]
    return pb.ScoreRequest(tasks=tasks, allow_partial=True)


def test_a_partial_answer_has_the_tasks_that_were_reached(store: Store) -> None:
    """Before the deadline: finished tasks are scored, the candidates of the others are NOT_SCORED with NaN."""

    async def test(scorer: Scorer, runtime: CrossingRuntime, metrics: Metrics) -> None:
        runtime.gate.set()
        whole = await scorer.score(request("abc"), remaining=30)
        runtime.gate.clear()
        partial = await scorer.score(request("abc", "slow"), remaining=0.05)
        assert list(partial.results[0].scores[::2]) == list(whole.results[0].scores[::2])
        assert list(partial.results[0].statuses) == list(whole.results[0].statuses)
        assert list(partial.results[1].statuses) == [pb.DOCUMENT_STATUS_NOT_SCORED] * 3
        assert np.isnan(partial.results[1].scores).all()
        assert metrics.registry.get_sample_value("twinbert_candidates_total", {"status": "not_scored"}) == 3

    run(store, test)


def test_nothing_reached_is_still_an_answer(store: Store) -> None:
    """With allow_partial a deadline never fails the request."""

    async def test(scorer: Scorer, runtime: CrossingRuntime, metrics: Metrics) -> None:
        response = await scorer.score(request("slow"), remaining=0.0)
        assert list(response.results[0].statuses) == [pb.DOCUMENT_STATUS_NOT_SCORED] * 3

    run(store, test)


def test_a_request_that_would_be_too_late_is_refused_unless_part_of_it_will_do(store: Store) -> None:
    """Before work is wasted; with allow_partial it is answered with what is there at the deadline."""

    async def test(scorer: Scorer, runtime: CrossingRuntime, metrics: Metrics) -> None:
        scorer._batcher.cost.observe(tokens=2, seconds=100.0)
        first = asyncio.ensure_future(scorer.score(request("first"), remaining=None))
        while not runtime.batches:
            await asyncio.sleep(0)
        whole = request("second")
        whole.allow_partial = False
        with pytest.raises(DeadlineError):
            await scorer.score(whole, remaining=1)
        partial = await scorer.score(request("second"), remaining=0.05)
        assert list(partial.results[0].statuses) == [pb.DOCUMENT_STATUS_NOT_SCORED] * 3
        runtime.gate.set()
        await first
        assert runtime.batches == [["first"]]

    run(store, test)


def test_a_cancelled_request_gives_up_its_queries(store: Store) -> None:
    """What a cancelled caller was waiting for is dropped before it reaches an engine."""

    async def test(scorer: Scorer, runtime: CrossingRuntime, metrics: Metrics) -> None:
        first = asyncio.ensure_future(scorer.score(request("first"), remaining=None))
        while not runtime.batches:
            await asyncio.sleep(0)
        second = asyncio.ensure_future(scorer.score(request("second"), remaining=None))
        await asyncio.sleep(0)
        second.cancel()
        runtime.gate.set()
        await first
        assert (await asyncio.gather(second, return_exceptions=True))[0].__class__ is asyncio.CancelledError
        assert runtime.batches == [["first"]]

    run(store, test)


def test_a_score_that_is_not_finite_is_an_error(store: Store) -> None:
    """A broken model fails the request instead of sending NaN as if it were a score."""

    async def test(scorer: Scorer, runtime: Any, metrics: Metrics) -> None:
        runtime.gate.set()
        runtime.cross = lambda queries, documents, task, crossing: np.full(len(task), np.nan, dtype=np.float32)
        with pytest.raises(RuntimeError, match="not finite"):
            await scorer.score(request("abc"), remaining=None)

    run(store, test)


def test_an_embedding_that_comes_too_late_changes_nothing(store: Store) -> None:
    """A task that was not reached when the answer began stays NOT_SCORED, also if its query is encoded meanwhile."""

    async def test(scorer: Scorer, runtime: Any, metrics: Metrics) -> None:
        runtime.gate.set()
        await scorer.score(request("abc"), remaining=30)
        runtime.gate.clear()
        whole, batches = runtime.cross, len(runtime.batches)

        def slow(*arguments: Any) -> Any:
            runtime.gate.set()  # the late query's embedding reaches the event loop while this thread crosses
            deadline = asyncio.run_coroutine_threadsafe(encoded("late"), loop)
            deadline.result(30)
            return whole(*arguments)

        async def encoded(query: str) -> None:
            while scorer._batcher._cache.get(("tower", query)) is None:
                await asyncio.sleep(0)

        loop, runtime.cross = asyncio.get_running_loop(), slow
        many = pb.ScoreRequest(allow_partial=True)
        many.tasks.add(query="abc", document_ids=["d1"] * 600)
        many.tasks.add(query="late", document_ids=["d1"] * 600)
        scorer._lane._candidate_s = 1e-3  # it keeps back half of the time: more than a busy machine takes away
        response = await scorer.score(many, remaining=1.0)
        assert len(runtime.batches) == batches + 1
        assert set(response.results[0].statuses) == {pb.DOCUMENT_STATUS_OK}
        assert set(response.results[1].statuses) == {pb.DOCUMENT_STATUS_NOT_SCORED}
        assert np.isnan(response.results[1].scores).all()

    run(store, test)


def test_candidates_being_answered_are_bounded(store: Store) -> None:
    """A request beyond the bound is refused and told when to try again; one that is alone is taken."""

    async def test(scorer: Scorer, runtime: CrossingRuntime, metrics: Metrics) -> None:
        first = asyncio.ensure_future(scorer.score(request("first", "second"), remaining=None))
        while not runtime.batches:
            await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="6 candidates are being scored, 5 may be"):
            await scorer.score(request("third"), remaining=None)
        runtime.gate.set()
        assert len((await first).results) == 2
        assert len((await scorer.score(request("third"), remaining=None)).results) == 1

    run(store, test, candidates=5)
