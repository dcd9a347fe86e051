"""Encode calls: so many at a time, the others wait in a bounded queue.

One that is given up or expires there is not begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from encoder_server.metrics import Metrics
from encoder_server.settings import Settings
from twinbert.bundle import Tower
from twinbert.errors import DeadlineError, QueueFullError
from twinbert.runtime import Runtime

# Of the latest call, in what a text is taken to cost.
_WEIGHT = 0.1


class Encodes:
    """Answers Encode calls.

    Args:
        runtime: with both towers, and one thread a call.
        settings: how many calls are encoded, and may wait.
        metrics: where to count.
        clock: seconds.
    """

    def __init__(
        self, runtime: Runtime, settings: Settings, metrics: Metrics, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._runtime, self._settings, self._metrics, self._clock = runtime, settings, metrics, clock
        self._executor = ThreadPoolExecutor(settings.workers, "encode")
        self._free = asyncio.Semaphore(settings.workers)
        self._calls = self._texts = 0  # that wait, or that a worker is at
        self._text_s = 0.0  # while nothing is known nobody is refused for it

    async def encode(self, texts: list[str], tower: Tower, remaining: float | None) -> bytes:
        """Encodes texts.

        Args:
            texts: N of them, none blank.
            tower: which.
            remaining: seconds until the deadline; None: there is none.

        Returns:
            Their embeddings, float32 [N, D], little-endian.

        Raises:
            QueueFullError: too many calls are waiting.
            DeadlineError: the answer would come too late.
            TimeoutError: the deadline passed before a worker was free.
        """
        left = math.inf if remaining is None else remaining
        expires = self._clock() + left
        with contextlib.ExitStack() as place:
            place.enter_context(self._admitted(len(texts), left))
            await self._free.acquire()
            work = asyncio.get_running_loop().run_in_executor(self._executor, self._encode, texts, tower, expires)
            # Whatever becomes of the call, a worker is at it until this is done.
            work.add_done_callback(partial(self._done, place.pop_all(), len(texts)))
        embeddings, _ = await asyncio.shield(work)
        return embeddings

    @contextlib.contextmanager
    def _admitted(self, texts: int, left: float) -> Iterator[None]:
        """A place for a call; who finds a worker free is always let in."""
        workers, ahead_s = self._settings.workers, self._text_s * self._texts / self._settings.workers
        if self._calls >= workers + self._settings.waiting:
            raise QueueFullError(
                f"{self._calls} Encode requests are ahead; try again", max(0.1, ahead_s), what="encodes"
            )
        if self._calls >= workers and ahead_s + self._text_s * texts > left:
            raise DeadlineError(
                f"{self._texts:,} texts are ahead, which may take {ahead_s:.3f} s, and the call has "
                f"{max(0.0, left):.3f} s left; give it more time, or try again",
                max(0.1, ahead_s),
                what="deadline",
            )
        self._calls += 1
        self._texts += texts
        try:
            yield
        finally:
            self._calls -= 1
            self._texts -= texts

    def _done(self, place: contextlib.ExitStack, texts: int, work: asyncio.Future[tuple[bytes, float]]) -> None:
        self._free.release()
        place.close()
        if not work.cancelled() and work.exception() is None:
            _, seconds = work.result()
            self._text_s += _WEIGHT * (seconds / texts - self._text_s)

    def _encode(self, texts: list[str], tower: Tower, expires: float) -> tuple[bytes, float]:
        begun = self._clock()
        if begun >= expires:  # gRPC's word that the call is over may still be on its way
            raise TimeoutError("the deadline passed before a worker was free")
        tokens = self._runtime.tokenize(texts, tower)
        self._metrics.truncated[tower].inc(int(tokens.truncated.sum()))
        embeddings = self._runtime.embed(tokens, tower).astype("<f4", copy=False).tobytes()
        return embeddings, self._clock() - begun

    def close(self) -> None:
        """Ends the workers after what they are at."""
        self._executor.shutdown(cancel_futures=True)
