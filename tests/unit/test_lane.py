"""Requests of very many candidates: the thread in which they are crossed, one step at a time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scorer_server.lane import CANDIDATE_S, Lane
from scorer_server.metrics import Metrics
from scorer_server.scoring import Scorer
from store.store import Store
from tests.unit.scoring_cases import CrossingRuntime, published, run
from twinbert.errors import DeadlineError
from twinbert.v1 import scorer_pb2 as pb

LARGE = 1001  # more than are crossed on the event loop


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    published(store)
    return store


def large(query: str, count: int = LARGE, *, partial: bool = False) -> pb.ScoreRequest:
    return pb.ScoreRequest(tasks=[pb.ScoreTask(query=query, document_ids=["d1"] * count)], allow_partial=partial)


class Blocked:
    """A large request that is just being crossed, until `go` is set.

    Attributes:
        located: candidates of each request that was looked up.
        crossed: of each other one that was crossed.
    """

    def __init__(self, scorer: Scorer, runtime: Any) -> None:
        runtime.gate.set()
        self.go, self._begun = threading.Event(), threading.Event()
        self.located: list[int] = []
        self.crossed: list[int] = []
        generation: Any = scorer._snapshots.current.generation
        self._locate, self._cross = generation.locate, runtime.cross
        generation.locate, runtime.cross = self._locating, self._blocking
        self.first = asyncio.ensure_future(scorer.score(large("first"), remaining=None))

    def _locating(self, ids: Any) -> Any:
        self.located.append(len(ids))
        return self._locate(ids)

    def _blocking(self, queries: Any, documents: Any, task_N: Any, crossing: Any = None) -> Any:
        if self._begun.is_set():
            self.crossed.append(len(task_N))
        else:
            self._begun.set()
            assert self.go.wait(30)
        return self._cross(queries, documents, task_N, crossing)

    async def begun(self) -> None:
        while not self._begun.is_set():
            await asyncio.sleep(0)


def test_what_was_given_up_in_the_queue_is_never_begun(store: Store) -> None:
    """A cancelled request does no work when its turn comes; the one behind it is answered."""

    async def test(scorer: Scorer, runtime: CrossingRuntime, metrics: Metrics) -> None:
        blocked = Blocked(scorer, runtime)
        await blocked.begun()
        second = asyncio.ensure_future(scorer.score(large("second", 1002), remaining=None))
        third = asyncio.ensure_future(scorer.score(large("third", 1003), remaining=None))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait((second,))
        blocked.go.set()
        await asyncio.gather(blocked.first, third)
        assert (blocked.located, blocked.crossed) == ([LARGE, 1003], [1003])

    run(store, test)


@pytest.mark.parametrize("partial", [False, True])
def test_what_expired_in_the_queue_is_never_begun(store: Store, partial: bool) -> None:
    """Nor does one whose deadline passed, although nobody has cancelled it; then not even a part of it is of use."""

    async def test(scorer: Scorer, runtime: CrossingRuntime, metrics: Metrics) -> None:
        blocked = Blocked(scorer, runtime)
        await blocked.begun()
        second = asyncio.ensure_future(scorer.score(large("second", 1002, partial=partial), remaining=0.05))
        await asyncio.sleep(0)
        deadline = time.perf_counter() + 0.05  # it has begun, so its own comes before
        while time.perf_counter() <= deadline:
            await asyncio.sleep(0)
        assert not second.done()
        blocked.go.set()
        with pytest.raises(TimeoutError, match="before the candidates could be crossed"):
            await second
        await blocked.first
        assert (blocked.located, blocked.crossed) == ([LARGE], [])

    run(store, test)


def test_what_would_wait_beyond_its_deadline_is_refused_at_once(store: Store) -> None:
    """With what is ahead it would be late; a request of few candidates does not wait there, and is answered."""

    async def test(scorer: Scorer, runtime: CrossingRuntime, metrics: Metrics) -> None:
        blocked = Blocked(scorer, runtime)
        await blocked.begun()
        scorer._lane._candidate_s = 1.0
        with pytest.raises(
            DeadlineError, match=r"1,001 candidates are ahead.*1001000 ms.*has 2000000 ms left"
        ) as caught:
            await scorer.score(large("second"), remaining=2000)
        assert (caught.value.what, caught.value.retry_after_s) == ("deadline", LARGE)
        assert len((await scorer.score(large("few", 1000), remaining=2000)).results[0].scores) == 1000
        third = asyncio.ensure_future(scorer.score(large("third"), remaining=2500))
        blocked.go.set()
        await asyncio.gather(blocked.first, third)
        alone = await scorer.score(large("alone"), remaining=60)  # nothing is ahead: it is tried, whatever the estimate
        assert len(alone.results[0].scores) == LARGE

    run(store, test)


def test_what_was_given_up_is_ahead_until_the_thread_has_left_it(store: Store) -> None:
    """Its caller has left, yet whoever comes waits for it, and is refused where that takes too long."""

    async def test(scorer: Scorer, runtime: CrossingRuntime, metrics: Metrics) -> None:
        blocked = Blocked(scorer, runtime)
        await blocked.begun()
        blocked.first.cancel()
        await asyncio.wait((blocked.first,))
        scorer._lane._candidate_s = 1.0
        with pytest.raises(DeadlineError, match="1,001 candidates are ahead"):
            await scorer.score(large("second"), remaining=2000)
        blocked.go.set()
        while scorer._lane._candidates:
            await asyncio.sleep(0)
        alone = await scorer.score(large("alone"), remaining=60)
        assert len(alone.results[0].scores) == LARGE

    run(store, test)


def test_a_partial_answer_leaves_time_for_a_slow_lane(store: Store) -> None:
    """Where a candidate takes long of late, a partial answer waits less for its queries; half of its time it does."""

    async def test(scorer: Scorer, runtime: CrossingRuntime, metrics: Metrics) -> None:
        scorer._lane._candidate_s = 1.0
        asyncio.get_running_loop().call_later(0.3, runtime.gate.set)
        late = await scorer.score(large("late", partial=True), remaining=0.4)
        assert set(late.results[0].statuses) == {pb.DOCUMENT_STATUS_NOT_SCORED}
        in_time = await scorer.score(large("in time", partial=True), remaining=60)
        assert set(in_time.results[0].statuses) == {pb.DOCUMENT_STATUS_OK}

    run(store, test)


def test_what_a_candidate_takes_is_learned() -> None:
    """After slow requests a wait is estimated longer, from the time of all their steps."""

    async def test() -> None:
        now = 0.0
        snapshots: Any = SimpleNamespace(keep=lambda snapshot, work: None)
        lane = Lane(snapshots, clock=lambda: now)

        def slow() -> None:
            nonlocal now
            now += 50.0

        with lane.turn(1000, 1.0), lane.turn(1000, 1.0, within=1.0):
            pass
        for _ in range(100):
            with lane.turn(1000, math.inf) as turn:
                await turn.run(slow, None)  # type: ignore[arg-type]  # a snapshot, which nobody looks at here
                await turn.run(slow, None)  # type: ignore[arg-type]  # likewise
        with lane.turn(1000, math.inf):
            with pytest.raises(DeadlineError), lane.turn(1000, math.inf, within=190.0):
                pass
            with lane.turn(1000, math.inf, within=210.0):
                pass
        lane.close()

    asyncio.run(test())


def test_a_step_is_expected_after_those_before_it() -> None:
    """Of other requests only those count that have a step in the thread, or waiting for it."""

    async def test() -> None:
        go = threading.Event()
        snapshots: Any = SimpleNamespace(keep=lambda snapshot, work: None)
        lane = Lane(snapshots)
        with lane.turn(1000, math.inf) as first, lane.turn(500, math.inf) as second:
            assert second.expected_s() == 500 * CANDIDATE_S
            work = first.run(lambda: go.wait(30), None)  # type: ignore[arg-type]  # a snapshot, likewise
            step = asyncio.ensure_future(work)
            await asyncio.sleep(0)
            assert second.expected_s() == 1500 * CANDIDATE_S
            go.set()
            assert await step
            assert second.expected_s() == 500 * CANDIDATE_S
        lane.close()

    asyncio.run(test())


def test_what_was_given_up_teaches_too() -> None:
    """Where everybody gives up while the thread is at it, waits are estimated longer; who leaves sooner is no news."""

    async def test() -> None:
        now, begun, go = 0.0, threading.Event(), threading.Event()
        snapshots: Any = SimpleNamespace(keep=lambda snapshot, work: None)
        lane = Lane(snapshots, clock=lambda: now)

        def slow() -> None:
            nonlocal now
            begun.set()
            assert go.wait(30)
            now += 100.0

        async def ask() -> None:
            with lane.turn(1000, math.inf) as turn:
                await turn.run(slow, None)  # type: ignore[arg-type]  # a snapshot, which nobody looks at here

        for _ in range(50):
            begun.clear()
            go.clear()
            asking = asyncio.ensure_future(ask())
            while not begun.is_set():
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait((asking,))
            go.set()
            while lane._candidates:
                await asyncio.sleep(0)
        for _ in range(100):
            with contextlib.suppress(TimeoutError), lane.turn(1000, math.inf):
                raise TimeoutError
        with lane.turn(1000, math.inf), pytest.raises(DeadlineError), lane.turn(1000, math.inf, within=190.0):
            pass
        lane.close()

    asyncio.run(test())
