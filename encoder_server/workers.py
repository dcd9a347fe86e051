"""Encoding on every core: documents go in with their texts, and come out run by run, in order, with embeddings."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from store.documents import Batch
from twinbert.runtime import MAX_RUN_TOKENS, Floats, Runtime, TokenBatch


class Workers:
    """Threads that encode, and the runs that they are at or will be.

    Args:
        runtime: with the document tower, and one thread a call.
        count: threads.

    Attributes:
        threads: for other things to do at once.
    """

    def __init__(self, runtime: Runtime, count: int) -> None:
        self.threads = ThreadPoolExecutor(count, "encode")
        self._runtime = runtime
        self._runs: deque[tuple[Batch, Future[Floats]]] = deque()

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def ready(self) -> bool:
        """Whether `collect` would not wait."""
        return bool(self._runs) and self._runs[0][1].done()

    def submit(self, batch: Batch, texts: list[str]) -> int:
        """Hands documents over; returns how many of them are longer than the tower reads."""
        tokens = self._runtime.tokenize(texts, "document")
        for run in _runs(tokens.lengths):
            of_run = np.zeros(len(texts), dtype=np.bool_)
            of_run[run] = True
            run_tokens = TokenBatch([tokens.ids[i] for i in run.tolist()], tokens.truncated[run])
            self._runs.append((batch.take(of_run), self.threads.submit(self._runtime.embed, run_tokens, "document")))
        return int(tokens.truncated.sum())

    def wait(self) -> None:
        """Until the oldest run is encoded."""
        self._runs[0][1].result()

    def collect(self) -> tuple[Batch, Floats]:
        """The oldest run, with its embeddings [N, D], when it is encoded."""
        batch, run = self._runs.popleft()
        return batch, run.result()

    def stop(self) -> Iterator[tuple[Batch, Floats]]:
        """Begins no other run; those that are encoded, or being so."""
        for _, run in self._runs:
            run.cancel()
        for batch, run in self._runs:
            if not run.cancelled() and run.exception() is None:
                yield batch, run.result()

    def end(self) -> None:
        """Ends the threads after the runs that they are at."""
        self.threads.shutdown(cancel_futures=True)


def _runs(lengths_N: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Cuts texts into runs of like length that one call of the tower computes: their places, ascending within a run.

    The longest come first, so that at the end of a refresh no worker is left alone with a long run.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    start = 0
    while start < len(order_N):
        stop = start + max(1, MAX_RUN_TOKENS // int(lengths_N[order_N[start]]))
        yield np.sort(order_N[start:stop])
        start = stop
