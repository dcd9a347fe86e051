"""A Score request, from its parsed message to its response.

Shapes: Q queries (tasks), N candidates of all tasks, F of them found, D dimension.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import numpy.typing as npt

from scorer_server.batcher import Batcher, Ticket
from scorer_server.metrics import Metrics
from scorer_server.requests import check_queries, check_score, crossing_name
from scorer_server.settings import Limits
from scorer_server.snapshots import Snapshots
from store.reader import Generation
from twinbert.runtime import Floats, Runtime
from twinbert.v1 import scorer_pb2 as pb

OK, NOT_FOUND, NOT_SCORED = pb.DOCUMENT_STATUS_OK, pb.DOCUMENT_STATUS_NOT_FOUND, pb.DOCUMENT_STATUS_NOT_SCORED
_STATUSES = {"ok": OK, "not_found": NOT_FOUND, "not_scored": NOT_SCORED}

# A partial answer leaves this long before the deadline.
PARTIAL_MARGIN_S = 0.005

# Crossing this many takes about as long as going to a thread and back; more would hold up the event loop.
_INLINE_CANDIDATES = 1000

# Of a full queue of 512 requests, this many rows of 384 float32 each are 200 MB.
_EARLY_CANDIDATES = 256


class Scorer:
    """Answers Score requests.

    Args:
        snapshots: the generations.
        batcher: the query tower.
        runtime: the crossing layers.
        limits: what a request may ask for.
        metrics: where to count.
    """

    def __init__(
        self, snapshots: Snapshots, batcher: Batcher, runtime: Runtime, limits: Limits, metrics: Metrics
    ) -> None:
        self._snapshots, self._batcher, self._runtime = snapshots, batcher, runtime
        self._limits, self._metrics = limits, metrics
        self._executor = ThreadPoolExecutor(1, "cross")

    async def score(self, request: pb.ScoreRequest, remaining: float | None) -> pb.ScoreResponse:
        """Scores the candidates of every task.

        Args:
            request: as it came.
            remaining: seconds until the deadline; None: there is none.

        Raises:
            InvalidRequestError: the request breaks the contract or a limit.
            GenerationNotFoundError: the generation is not held.
            CrossingMissingError: the bundle lacks the crossing.
            QueueFullError: too much is waiting.
        """
        started = time.perf_counter()
        check_score(request, self._limits)
        crossing = crossing_name(request.crossing, self._runtime.bundle)
        queries = check_queries([task.query for task in request.tasks], "tasks", self._limits)
        with self._snapshots.hold(request.generation) as generation, self._batcher.submit(queries) as ticket:
            # While the engine encodes, all is made ready that does not need the embeddings.
            answer = _Answer(request, generation, self._runtime, crossing)
            margin = None if remaining is None else max(0.0, remaining - PARTIAL_MARGIN_S)
            await _encoded(ticket, margin if request.allow_partial else None)
            if len(answer.tasks_N) <= _INLINE_CANDIDATES:
                response = answer.finish(ticket.embeddings)
            else:
                run = asyncio.get_running_loop().run_in_executor
                response = await run(self._executor, answer.finish, ticket.embeddings)
            set_times(response.times, ticket, answer.lookup_s, answer.cross_s, started)
            self._observe(answer)
            return response

    def _observe(self, answer: _Answer) -> None:
        metrics = self._metrics
        metrics.stages["lookup"].observe(answer.lookup_s)
        metrics.stages["cross"].observe(answer.cross_s)
        for status, count in answer.counts.items():
            if count:
                metrics.candidates[status].inc(count)

    def close(self) -> None:
        """Ends its thread; nothing may be running."""
        self._executor.shutdown()


class _Answer:
    """The response to a request, as far as it is made.

    Attributes:
        tasks_N: int64, which task each candidate belongs to.
        lookup_s: finding and reading the candidates, in seconds.
        cross_s: crossing them, in seconds.
        counts: candidates by status.
    """

    def __init__(self, request: pb.ScoreRequest, generation: Generation, runtime: Runtime, crossing: str) -> None:
        begun = time.perf_counter()
        self._generation, self._runtime, self._crossing = generation, runtime, crossing
        self._counts_Q = [len(task.document_ids) or len(task.document_numbers) for task in request.tasks]
        self._located = generation.locate(_ids(request, generation))
        self._statuses_N = np.where(self._located.found, OK, NOT_FOUND)
        self.tasks_N = np.repeat(np.arange(len(self._counts_Q)), self._counts_Q)
        # Read early only what is small: many requests may be waiting.
        early = len(self.tasks_N) <= _EARLY_CANDIDATES
        self._documents_FD = generation.read(self._located) if early else None
        self.lookup_s, self.cross_s = time.perf_counter() - begun, 0.0
        self.counts: dict[str, int] = {}

    def finish(self, embeddings: Sequence[Floats | None]) -> pb.ScoreResponse:
        """Crosses the candidates of the tasks whose query is encoded, and writes the response."""
        found_N = self._located.found
        tasks_F = self.tasks_N if len(self._located.rows) == len(found_N) else self.tasks_N[found_N]
        scores_F = self._cross(embeddings, tasks_F)
        if len(self._located.rows) == len(found_N):
            scores_N = scores_F
        else:
            scores_N = np.full(len(found_N), np.nan, dtype=np.float32)
            scores_N[found_N] = scores_F
        if any(one is None for one in embeddings):
            missing_N = np.array([one is None for one in embeddings])[self.tasks_N]
            self._statuses_N[missing_N], scores_N[missing_N] = NOT_SCORED, np.nan

        # Lists: protobuf takes them eight times faster than arrays.
        scores, statuses, start = scores_N.tolist(), self._statuses_N.tolist(), 0
        self.counts = {name: statuses.count(status) for name, status in _STATUSES.items()}
        response = pb.ScoreResponse(generation=self._generation.name, model=self._runtime.bundle.model)
        for count in self._counts_Q:
            response.results.add(scores=scores[start : start + count], statuses=statuses[start : start + count])
            start += count
        return response

    def _cross(self, embeddings: Sequence[Floats | None], tasks_F: npt.NDArray[np.int64]) -> Floats:
        begun = time.perf_counter()
        documents_FD = self._generation.read(self._located) if self._documents_FD is None else self._documents_FD
        read = time.perf_counter()
        # A query that was not reached is crossed as zeros; what comes of it is not sent.
        queries_QD = np.zeros((len(embeddings), documents_FD.shape[1]), dtype=np.float32)
        for row_D, embedding_D in zip(queries_QD, embeddings, strict=True):
            if embedding_D is not None:
                row_D[:] = embedding_D
        scores_F = self._runtime.cross(queries_QD, documents_FD, tasks_F, self._crossing)
        if not math.isfinite(float(scores_F.sum())):
            raise RuntimeError("the crossing layer gave a score that is not finite")
        self.lookup_s += read - begun
        self.cross_s = time.perf_counter() - read
        return scores_F


def _ids(request: pb.ScoreRequest, generation: Generation) -> list[str] | npt.NDArray[np.uint64]:
    """The candidates of all tasks, in order."""
    if any(task.document_numbers for task in request.tasks):
        return np.concatenate([np.array(task.document_numbers, dtype=np.uint64) for task in request.tasks])
    return list(chain.from_iterable(task.document_ids for task in request.tasks))


async def _encoded(ticket: Ticket, timeout: float | None) -> None:
    """Waits for a ticket's queries, at most `timeout` seconds; raises the error of a query that failed."""
    if timeout is None:
        await ticket.done
    elif (await asyncio.wait((ticket.done,), timeout=timeout))[0]:
        ticket.done.result()


def set_times(times: pb.StageTimes, ticket: Ticket, lookup_s: float, cross_s: float, started: float) -> None:
    """Writes a response's stage times; `started` is the perf_counter at which the request began."""
    times.queue_us = _us(ticket.queue_s)
    times.tokenize_us = _us(ticket.tokenize_s)
    times.encode_us = _us(ticket.encode_s)
    times.lookup_us = _us(lookup_s)
    times.cross_us = _us(cross_s)
    times.total_us = _us(time.perf_counter() - started)
    times.cached_queries = ticket.cached


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
