"""A Score request, from its parsed message to its response.

Shapes: Q queries (tasks), N candidates of all tasks, F of them found, D dimension.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from scorer_server.batcher import Batcher, Ticket
from scorer_server.metrics import Metrics
from scorer_server.requests import check_queries, check_score, crossing_name
from scorer_server.settings import Limits
from scorer_server.snapshots import Snapshots
from store.reader import Generation, Located
from twinbert.runtime import Floats, Runtime
from twinbert.v1 import scorer_pb2 as pb

OK, NOT_FOUND, NOT_SCORED = pb.DOCUMENT_STATUS_OK, pb.DOCUMENT_STATUS_NOT_FOUND, pb.DOCUMENT_STATUS_NOT_SCORED

# A partial answer leaves this long before the deadline.
PARTIAL_MARGIN_S = 0.005

# Crossing this many takes about as long as going to a thread and back; more would hold up the event loop.
_INLINE_CANDIDATES = 1000


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
            # The engine encodes while the candidates are found.
            located = generation.locate(_ids(request, generation))
            found_s = time.perf_counter() - started
            margin = None if remaining is None else max(0.0, remaining - PARTIAL_MARGIN_S)
            await _encoded(ticket, margin if request.allow_partial else None)
            counts_Q = [len(task.document_ids) or len(task.document_numbers) for task in request.tasks]
            finish = _Finish(
                runtime=self._runtime,
                generation=generation,
                ticket=ticket,
                located=located,
                counts_Q=counts_Q,
                crossing=crossing,
            )
            if len(located.found) <= _INLINE_CANDIDATES:
                response = finish()
            else:
                response = await asyncio.get_running_loop().run_in_executor(self._executor, finish)
            finish.lookup_s += found_s
            self._observe(finish)
            set_times(response.times, ticket, finish.lookup_s, finish.cross_s, started)
            return response

    def _observe(self, finish: _Finish) -> None:
        metrics = self._metrics
        metrics.stages["lookup"].observe(finish.lookup_s)
        metrics.stages["cross"].observe(finish.cross_s)
        for status, count in (("ok", finish.ok), ("not_found", finish.not_found), ("not_scored", finish.not_scored)):
            if count:
                metrics.candidates[status].inc(count)

    def close(self) -> None:
        """Ends its thread; nothing may be running."""
        self._executor.shutdown()


@dataclass(kw_only=True, slots=True)
class _Finish:
    """What is left once the queries are encoded: read, cross, and write the response. Then it says what it did."""

    runtime: Runtime
    generation: Generation
    ticket: Ticket
    located: Located
    counts_Q: Sequence[int]
    crossing: str
    lookup_s: float = 0.0
    cross_s: float = 0.0
    ok: int = 0
    not_found: int = 0
    not_scored: int = 0

    def __call__(self) -> pb.ScoreResponse:
        ready_Q = np.array([embedding_D is not None for embedding_D in self.ticket.embeddings])
        located, tasks_N = self.located, np.repeat(np.arange(len(ready_Q)), self.counts_Q)
        if not ready_Q.all():
            ready_N = ready_Q[tasks_N]
            located = Located(located.found & ready_N, located.rows[ready_N[located.found]])
        scores_N = np.full(len(tasks_N), np.nan, dtype=np.float32)
        scores_N[located.found] = self._cross(located, tasks_N[located.found])

        statuses_N = np.where(self.located.found, OK, NOT_FOUND)
        statuses_N[~ready_Q[tasks_N]] = NOT_SCORED
        counts = np.bincount(statuses_N, minlength=4).tolist()
        self.ok, self.not_found, self.not_scored = counts[OK], counts[NOT_FOUND], counts[NOT_SCORED]

        response = pb.ScoreResponse(generation=self.generation.name, model=self.runtime.bundle.model)
        # Lists: protobuf takes them eight times faster than arrays.
        scores, statuses, start = scores_N.tolist(), statuses_N.tolist(), 0
        for count in self.counts_Q:
            end = start + count
            response.results.add(scores=scores[start:end], statuses=statuses[start:end])
            start = end
        return response

    def _cross(self, located: Located, tasks_F: npt.NDArray[np.int64]) -> Floats:
        begun = time.perf_counter()
        documents_FD = self.generation.read(located)
        read = time.perf_counter()
        zeros_D = np.zeros(documents_FD.shape[1], dtype=np.float32)
        queries_QD = np.stack([zeros_D if one is None else one for one in self.ticket.embeddings])
        scores_F = self.runtime.cross(queries_QD, documents_FD, tasks_F, self.crossing)
        if not math.isfinite(float(scores_F.sum())):
            raise RuntimeError("the crossing layer gave a score that is not finite")
        self.lookup_s, self.cross_s = read - begun, time.perf_counter() - read
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
