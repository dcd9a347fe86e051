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
from typing import TypeVar

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
        self._candidate_s = CANDIDATE_S

    @contextlib.contextmanager
    def turn(self, candidates: int, remaining: float, within: float = math.inf) -> Iterator[Turn]:
        """A place behind the requests that are in it; who finds none is always let in.

        Args:
            candidates: of the request.
            remaining: seconds after which no step is begun.
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
        turn = Turn(self._executor, self._snapshots, self._clock, self._clock() + remaining)
        self._candidates += candidates
        try:
            yield turn
            self._candidate_s += _WEIGHT * (turn.worked_s / candidates - self._candidate_s)
        finally:
            self._candidates -= candidates

    def close(self) -> None:
        """Ends the thread; nothing may be running."""
        self._executor.shutdown()


class Turn:
    """The steps of one request.

    Attributes:
        worked_s: what they took, in seconds.
    """

    def __init__(
        self, executor: ThreadPoolExecutor, snapshots: Snapshots, clock: Callable[[], float], expires: float
    ) -> None:
        self._executor, self._snapshots = executor, snapshots
        self._clock, self._expires = clock, expires
        self.worked_s = 0.0

    async def run(self, step: Callable[[], _T], snapshot: Snapshot) -> _T:
        """Runs a step that reads the snapshot.

        Raises:
            TimeoutError: the time was over before it could begin.
        """
        job = self._executor.submit(self._timed, step)
        work = asyncio.wrap_future(job)
        self._snapshots.keep(snapshot, work)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            job.cancel()  # unless it has begun
            raise

    def _timed(self, step: Callable[[], _T]) -> _T:
        begun = self._clock()
        if begun >= self._expires:  # gRPC's word that the call is over may still be on its way
            raise TimeoutError("the deadline passed before the candidates could be crossed")
        result = step()
        self.worked_s += self._clock() - begun
        return result
