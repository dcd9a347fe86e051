"""The thread for requests of more candidates than the event loop has time for: one step at a time, as they come.

A step that nobody waits for any more is not begun, and a request that would be late is refused before its first.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from scorer_server.snapshots import Snapshot, Snapshots
from twinbert.errors import DeadlineError

_T = TypeVar("_T")

# To find, read, cross and write one, in seconds, where nothing is known yet.
CANDIDATE_S = 2e-6

# Of the latest request, in what a candidate is taken to cost.
_WEIGHT = 0.1


class Lane:
    """The thread, and who is in it.

    Args:
        snapshots: the generations, which must not go while the thread reads them.
        clock: seconds.
    """

    def __init__(self, snapshots: Snapshots, clock: Callable[[], float] = time.perf_counter) -> None:
        self._snapshots, self._clock = snapshots, clock
        self._executor = ThreadPoolExecutor(1, "cross")
        self._candidates = 0  # of the requests that are in it
        self._queued = 0  # of those of which it is at a step, or has one before it
        self._candidate_s = CANDIDATE_S

    @contextlib.contextmanager
    def turn(self, candidates: int, expires: float, within: float = math.inf) -> Iterator[Turn]:
        """A place behind the requests that are in it; who finds none is always let in.

        Args:
            candidates: of the request.
            expires: when no step is begun any more, by the clock.
            within: seconds within which its steps must be done.

        Raises:
            DeadlineError: they would not be; says when to try again.
        """
        ahead_s = self._candidate_s * self._candidates
        if ahead_s and ahead_s + self._candidate_s * candidates > within:
            raise DeadlineError(
                f"{self._candidates:,} candidates are ahead, which may take {1000 * ahead_s:.0f} ms, and the call has "
                f"{1000 * max(0.0, within):.0f} ms left; give it more time, or try another replica",
                max(0.01, ahead_s),
                what="deadline",
            )
        turn = Turn(self, candidates, expires)
        self._candidates += candidates
        answered = False
        try:
            yield turn
            answered = True
        finally:
            if turn.work is None or turn.work.done():
                self._leave(turn, answered)
            else:  # it was given up, and the thread is at it
                turn.work.add_done_callback(lambda _: self._leave(turn, answered))

    def close(self) -> None:
        """Ends the thread; nothing may be running."""
        self._executor.shutdown()

    def _leave(self, turn: Turn, answered: bool) -> None:
        self._candidates -= turn.candidates
        candidate_s = turn.worked_s / turn.candidates
        if answered or candidate_s > self._candidate_s:  # given up, it would have taken longer still
            self._candidate_s += _WEIGHT * (candidate_s - self._candidate_s)


class Turn:
    """The steps of one request, one after the other.

    Args:
        lane: where they run.
        candidates: of the request.
        expires: when no step is begun any more, by the lane's clock.

    Attributes:
        candidates: see there.
        worked_s: what the steps took, in seconds.
        work: the latest step; None before the first.
    """

    def __init__(self, lane: Lane, candidates: int, expires: float) -> None:
        self._lane, self.candidates, self._expires = lane, candidates, expires
        self.worked_s = 0.0
        self.work: asyncio.Future[Any] | None = None

    def expected_s(self) -> float:
        """Seconds until a step that joined now would be done, by what a candidate took of late."""
        return self._lane._candidate_s * (self._lane._queued + self.candidates)

    async def run(self, step: Callable[[], _T], snapshot: Snapshot) -> _T:
        """Runs a step that reads the snapshot.

        Raises:
            TimeoutError: the time was over before it could begin.
        """
        lane = self._lane
        job = lane._executor.submit(self._timed, step)
        self.work = work = asyncio.wrap_future(job)
        lane._queued += self.candidates
        work.add_done_callback(self._done)
        lane._snapshots.keep(snapshot, work)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            job.cancel()  # unless it has begun
            raise

    def _done(self, _: asyncio.Future[Any]) -> None:
        self._lane._queued -= self.candidates

    def _timed(self, step: Callable[[], _T]) -> _T:
        begun = self._lane._clock()
        if begun >= self._expires:  # gRPC's word that the call is over may still be on its way
            raise TimeoutError("the deadline passed before the candidates could be crossed")
        result = step()
        self.worked_s += self._lane._clock() - begun
        return result
