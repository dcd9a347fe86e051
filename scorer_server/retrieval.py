"""A Retrieve request: every row is compared, in blocks, in a thread of its own that yields to everything else.

Shapes: Q queries, R rows of a block, K hits wanted, D dimension.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from scorer_server.batcher import Batcher
from scorer_server.metrics import Metrics
from scorer_server.requests import check_queries, check_retrieve
from scorer_server.scoring import set_times
from scorer_server.settings import Settings
from scorer_server.snapshots import Snapshot, Snapshots
from store.reader import Generation
from twinbert.errors import DeadlineError, QueueFullError, UnsupportedError
from twinbert.runtime import Floats
from twinbert.v1 import scorer_pb2 as pb

_BLOCK_ROWS = 4096

# The scan ranks by a matrix product, which rounds otherwise than the crossing layer does; so a few more than were
# asked for are crossed, and the crossing's own scores decide.
_SPARE = 8

# Niceness of the scanning thread: Score's threads go first.
_NICE = 10


class Retriever:
    """Answers Retrieve requests, one at a time.

    Args:
        snapshots: the generations.
        batcher: the query towers.
        settings: limits.
        metrics: where to count.
    """

    def __init__(self, snapshots: Snapshots, batcher: Batcher, settings: Settings, metrics: Metrics) -> None:
        self._snapshots, self._batcher = snapshots, batcher
        self._settings, self._metrics = settings, metrics
        self._executor = ThreadPoolExecutor(1, "retrieve", initializer=_yield_to_others)
        self._waiting = 0
        self._scan_s = 0.0  # of the last one

    async def retrieve(self, request: pb.RetrieveRequest, remaining: float | None) -> pb.RetrieveResponse:
        """Finds the best documents for each query.

        Args:
            request: as it came.
            remaining: seconds until the deadline; None: there is none.

        Raises:
            InvalidRequestError: the request breaks the contract or a limit.
            UnsupportedError: the bundle has no cosine crossing.
            GenerationNotFoundError: the generation is not held.
            QueueFullError: too much is waiting.
            DeadlineError: the answer would come too late.
        """
        started = time.perf_counter()
        limit = check_retrieve(request, self._settings.limits)
        queries = check_queries(request.queries, "queries", self._settings.limits)
        left = math.inf if remaining is None else remaining
        self._admit(left)
        self._waiting += 1
        try:
            with self._snapshots.hold(request.generation) as snapshot:
                if "cosine" not in snapshot.runtime.bundle.crossings:
                    raise UnsupportedError(
                        "Retrieve needs a bundle with a cosine crossing; this one has none: use Score"
                    )
                with self._batcher.submit(queries, snapshot.runtime, left) as ticket:
                    await ticket.done
                    queries_QD = np.stack([one for one in ticket.embeddings if one is not None])
                    response, scan_s, cross_s = await self._run(snapshot, queries_QD, limit)
        finally:
            self._waiting -= 1
        self._scan_s = scan_s
        self._metrics.stages["scan"].observe(scan_s)
        set_times(response.times, ticket, scan_s, cross_s, started)
        return response

    def _admit(self, left: float) -> None:
        """Raises unless there is room for another request, and time. Who finds nothing before them is always let in."""
        if self._waiting >= self._settings.retrievals:
            raise QueueFullError(
                f"{self._waiting} Retrieve requests are waiting, which is the limit; try again, or another replica",
                max(0.01, self._scan_s),
                what="retrievals",
            )
        if self._waiting and self._scan_s * (self._waiting + 1) > left:
            raise DeadlineError(
                f"{self._waiting} Retrieve requests are ahead, a scan takes {self._scan_s:.3f} s, and the call has "
                f"{left:.3f} s left; give it more time, or try another replica",
                max(0.01, self._scan_s * self._waiting),
                what="deadline",
            )

    async def _run(
        self, snapshot: Snapshot, queries_QD: Floats, limit: int
    ) -> tuple[pb.RetrieveResponse, float, float]:
        given_up = threading.Event()
        work = asyncio.get_running_loop().run_in_executor(self._executor, _scan, snapshot, queries_QD, limit, given_up)
        self._snapshots.keep(snapshot, work)
        try:
            return await asyncio.shield(work)
        finally:
            given_up.set()

    def close(self) -> None:
        """Ends its thread; nothing may be running."""
        self._executor.shutdown()


def _scan(
    snapshot: Snapshot, queries_QD: Floats, limit: int, given_up: threading.Event
) -> tuple[pb.RetrieveResponse, float, float]:
    begun = time.perf_counter()
    generation, runtime = snapshot.generation, snapshot.runtime
    rows_QK = nearest(generation, queries_QD, limit + _SPARE, given_up)
    scanned = time.perf_counter()
    count = rows_QK.shape[1]
    documents_ND = generation.read_rows(rows_QK.reshape(-1))
    scores = runtime.cross(queries_QD, documents_ND, np.repeat(np.arange(len(queries_QD)), count), "cosine")
    response = pb.RetrieveResponse(generation=generation.name, model=runtime.bundle.model, exact=True)
    for rows_K, scores_K in zip(rows_QK, scores.reshape(-1, count), strict=True):
        best = np.lexsort((rows_K, -scores_K))[:limit]
        ids: Sequence[str | int] = generation.ids(rows_K[best])
        response.results.add(hits=map(_hit, ids, scores_K[best].tolist()))
    return response, scanned - begun, time.perf_counter() - scanned


def nearest(generation: Generation, queries_QD: Floats, count: int, given_up: threading.Event) -> npt.NDArray[np.int64]:
    """Rows of the `count` largest cosines with each query [Q, min(count, documents)], in no order.

    Raises:
        TimeoutError: `given_up` was set: nobody waits for the answer.
    """
    directions_QD = _normalised(queries_QD)
    best_QK = np.empty((len(queries_QD), 0), dtype=np.float32)
    rows_QK = np.empty((len(queries_QD), 0), dtype=np.int64)
    for rows_R, documents_RD in generation.scan(_BLOCK_ROWS):
        if given_up.is_set():
            raise TimeoutError("the caller has given up")
        cosines_QR = directions_QD @ _normalised(documents_RD).T
        rows_QR = np.broadcast_to(rows_R, cosines_QR.shape)
        best_QK = np.concatenate([best_QK, cosines_QR], axis=1)
        rows_QK = np.concatenate([rows_QK, rows_QR], axis=1)
        if best_QK.shape[1] > count:
            keep = np.argpartition(best_QK, -count, axis=1)[:, -count:]
            best_QK = np.take_along_axis(best_QK, keep, axis=1)
            rows_QK = np.take_along_axis(rows_QK, keep, axis=1)
    return rows_QK


def _hit(id_: str | int, score: float) -> pb.Hit:
    return pb.Hit(document_number=id_, score=score) if isinstance(id_, int) else pb.Hit(document_id=id_, score=score)


def _normalised(vectors_ND: Floats) -> Floats:
    norms_N = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND))
    # A vector of zeros stays one: its cosine with everything is 0, as in the crossing layer.
    unit_ND: Floats = vectors_ND / np.maximum(norms_N, np.float32(1e-12))[:, None]
    return unit_ND


def _yield_to_others() -> None:
    """Runs in the scanning thread. Linux keeps niceness by thread."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
