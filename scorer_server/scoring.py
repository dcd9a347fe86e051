"""A Score request, from its parsed message to its response.

Shapes: Q queries (tasks), N candidates of all tasks, F of them found, D dimension.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, compress
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from scorer_server.batcher import Batcher
from scorer_server.lane import CANDIDATE_S, Lane, Turn
from scorer_server.metrics import Metrics
from scorer_server.requests import check_queries, check_score, crossing_name
from scorer_server.sampling import Misses, Samplers
from scorer_server.settings import Settings
from scorer_server.snapshots import Snapshot, Snapshots
from scorer_server.tickets import Ticket
from store.reader import Located
from twinbert.errors import QueueFullError
from twinbert.runtime import Floats
from twinbert.serving.tracing import current_trace
from twinbert.v1 import scorer_pb2 as pb

OK, NOT_FOUND, NOT_SCORED = pb.DOCUMENT_STATUS_OK, pb.DOCUMENT_STATUS_NOT_FOUND, pb.DOCUMENT_STATUS_NOT_SCORED
_STATUSES = {"ok": OK, "not_found": NOT_FOUND, "not_scored": NOT_SCORED}

_T = TypeVar("_T")

# Crossing this many takes about as long as going to a thread and back; more would hold up the event loop.
_INLINE_CANDIDATES = 1000

# Of a full queue of 512 requests, this many rows of 384 float32 each are 200 MB.
_EARLY_CANDIDATES = 256


class Scorer:
    """Answers Score requests.

    Args:
        snapshots: the generations.
        batcher: the query towers.
        settings: what a request may ask for, and all of them together.
        metrics: where to count.
        samplers: what is recorded of requests.
    """

    def __init__(
        self, snapshots: Snapshots, batcher: Batcher, settings: Settings, metrics: Metrics, samplers: Samplers
    ) -> None:
        self._snapshots, self._batcher, self._samplers = snapshots, batcher, samplers
        self._limits, self._metrics = settings.limits, metrics
        self._candidates, self._most_candidates = 0, settings.candidates
        self._lane = Lane(snapshots)

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
            DeadlineError: the answer would come too late; never with `allow_partial`.
            TimeoutError: the time was over before work on it could begin.
        """
        started = time.perf_counter()
        candidates = check_score(request, self._limits)
        queries = check_queries([task.query for task in request.tasks], "tasks", self._limits)
        left = math.inf if remaining is None else remaining
        within = math.inf if request.allow_partial else left - CANDIDATE_S * candidates
        with (
            self._admitted(candidates),
            self._turn(request, candidates, started, left) as turn,
            self._snapshots.hold(request.generation) as snapshot,
            self._submitted(request, queries, snapshot, within) as (ticket, crossing),
        ):
            # While the engine encodes, all is made ready that does not need the embeddings.
            make = partial(Answer, request, snapshot, crossing)
            answer = await _run(make, turn, snapshot)
            if request.allow_partial and remaining is not None:
                still = started + left - time.perf_counter()
                await asyncio.wait((ticket.done,), timeout=max(0.0, still - _reserve(still, candidates, turn)))
                if ticket.done.done():
                    ticket.done.result()
            else:
                await ticket.done
            # A copy: what is encoded from here on comes too late for this request.
            response = await _run(partial(answer.finish, tuple(ticket.embeddings)), turn, snapshot)
            set_times(response.times, ticket, answer.lookup_s, answer.cross_s, started)
            self._observe(request, answer)
            return response

    @contextlib.contextmanager
    def _admitted(self, candidates: int) -> Iterator[None]:
        """A place for a request's candidates among those being answered."""
        if self._candidates and self._candidates + candidates > self._most_candidates:
            raise QueueFullError(
                f"{self._candidates:,} candidates are being scored, {self._most_candidates:,} may be; "
                "try again, or another replica",
                0.05,
                what="candidates",
            )
        self._candidates += candidates
        try:
            yield
        finally:
            self._candidates -= candidates

    def _turn(
        self, request: pb.ScoreRequest, candidates: int, started: float, left: float
    ) -> contextlib.AbstractContextManager[Turn | None]:
        """A turn in the lane, for a request that has too many candidates for the event loop."""
        if candidates <= _INLINE_CANDIDATES:
            return contextlib.nullcontext()
        return self._lane.turn(candidates, started + left, math.inf if request.allow_partial else left)

    @contextlib.contextmanager
    def _submitted(
        self, request: pb.ScoreRequest, queries: list[str], snapshot: Snapshot, within: float
    ) -> Iterator[tuple[Ticket, str]]:
        """The queries on their way, and the crossing: that of the bundle that the snapshot has."""
        crossing = crossing_name(request.crossing, snapshot.runtime.bundle)
        with self._batcher.submit(queries, snapshot.runtime, within) as ticket:
            yield ticket, crossing

    def _observe(self, request: pb.ScoreRequest, answer: Answer) -> None:
        metrics = self._metrics
        metrics.stages["lookup"].observe(answer.lookup_s)
        metrics.stages["cross"].observe(answer.cross_s)
        metrics.ages.observe(answer.times_F, time.time_ns() // 1_000_000)
        for status, count in answer.counts.items():
            if count:
                metrics.candidates[status].inc(count)
        if trace := current_trace():
            for name, begun, ended in answer.stages:
                trace.stage(name, begun, ended)
        if answer.misses is not None:
            for reason, missed in metrics.missed.items():
                missed.inc(answer.misses.reasons.count(reason))
            if self._samplers.misses is not None:
                self._samplers.misses.offer(request, answer.misses, answer.generation.name)
        if self._samplers.requests is not None:
            self._samplers.requests.offer(request, answer.crossing)

    def close(self) -> None:
        """Ends its thread; nothing may be running."""
        self._lane.close()


class Answer:
    """The response to a request, as far as it is made.

    Attributes:
        generation: that it comes from.
        crossing: name of the crossing layer.
        tasks_N: int64, which task each candidate belongs to.
        lookup_s: finding and reading the candidates, in seconds.
        cross_s: crossing them, in seconds.
        counts: candidates by status.
        stages: name, begin and end (perf_counter) of what was done.
        times_F: i64, source times, in milliseconds since the Unix epoch: of those found, once finished of those scored.
        misses: candidates that were not found, if any.
    """

    def __init__(self, request: pb.ScoreRequest, snapshot: Snapshot, crossing: str) -> None:
        begun = time.perf_counter()
        generation = snapshot.generation
        self.generation, self._runtime, self.crossing = generation, snapshot.runtime, crossing
        self._counts_Q = [len(task.document_ids) or len(task.document_numbers) for task in request.tasks]
        self._ids = _ids(request)
        self._located = generation.locate(self._ids)
        self._statuses_N = np.where(self._located.found, OK, NOT_FOUND)
        self.times_F = generation.times(self._located)
        self.tasks_N = np.repeat(np.arange(len(self._counts_Q)), self._counts_Q)
        # Read early only what is small: many requests may be waiting.
        early = len(self.tasks_N) <= _EARLY_CANDIDATES
        self._documents_FD = generation.read(self._located) if early else None
        located = time.perf_counter()
        self.lookup_s, self.cross_s = located - begun, 0.0
        self.stages = [("lookup", begun, located)]
        self.counts: dict[str, int] = {}
        self.misses: Misses | None = None

    def finish(self, embeddings: Sequence[Floats | None]) -> pb.ScoreResponse:
        """Crosses the candidates of the tasks whose query is encoded, and writes the response."""
        reached, documents_FD = self._located, self._documents_FD
        if any(one is None for one in embeddings):
            ready_N = np.array([one is not None for one in embeddings])[self.tasks_N]
            self._statuses_N[~ready_N] = NOT_SCORED
            reached_N, reached_F = reached.found & ready_N, ready_N[reached.found]
            reached, documents_FD = Located(reached_N, reached.rows[reached_F]), None
            self.times_F = self.times_F[reached_F]
            # These have no candidates among those reached, so what stands for them is never looked at.
            missing_D = np.zeros(self._runtime.bundle.dimension, dtype=np.float32)
            embeddings = [missing_D if one is None else one for one in embeddings]
        scores_N = scores_F = self._cross(embeddings, reached, documents_FD)
        if len(scores_F) < len(self.tasks_N):
            scores_N = np.full(len(self.tasks_N), np.nan, dtype=np.float32)
            scores_N[reached.found] = scores_F

        # Lists: protobuf takes them eight times faster than arrays.
        scores, statuses, start = scores_N.tolist(), self._statuses_N.tolist(), 0
        self.counts = {name: statuses.count(status) for name, status in _STATUSES.items()}
        if self.counts["not_found"]:
            self.misses = self._missed(self._statuses_N == NOT_FOUND)
        response = pb.ScoreResponse(generation=self.generation.name, model=self._runtime.bundle.model)
        for count in self._counts_Q:
            response.results.add(scores=scores[start : start + count], statuses=statuses[start : start + count])
            start += count
        return response

    def _missed(self, missing_N: npt.NDArray[np.bool_]) -> Misses:
        ids = self._ids[missing_N] if isinstance(self._ids, np.ndarray) else list(compress(self._ids, missing_N))
        reasons = np.where(self.generation.deleted(ids), "deleted", "never_seen").tolist()
        return Misses(ids, self.tasks_N[missing_N], reasons)

    def _cross(self, embeddings: Sequence[Floats | None], located: Located, documents_FD: Floats | None) -> Floats:
        begun = time.perf_counter()
        documents_FD = self.generation.read(located) if documents_FD is None else documents_FD
        read = time.perf_counter()
        task_F = self.tasks_N[located.found]
        scores_F = self._runtime.cross(np.array(embeddings), documents_FD, task_F, self.crossing)
        if not math.isfinite(np.add.reduce(scores_F)):
            raise RuntimeError("the crossing layer gave a score that is not finite")
        crossed = time.perf_counter()
        self.lookup_s += read - begun
        self.cross_s = crossed - read
        self.stages += [("lookup", begun, read), ("cross", read, crossed)]
        return scores_F


async def _run(step: Callable[[], _T], turn: Turn | None, snapshot: Snapshot) -> _T:
    """Runs a step that reads the store: in its turn, or where it is short at once."""
    return step() if turn is None else await turn.run(step, snapshot)


def _reserve(left: float, candidates: int, turn: Turn | None) -> float:
    """What a partial answer keeps back of what is left for the time after the wait, in seconds: 5 ms, and what its
    candidates take. In the lane that is by what they took of late, with those before them; but half at most, or one
    slow request would leave those after it without an answer.
    """
    return 0.005 + (CANDIDATE_S * candidates if turn is None else min(turn.expected_s(), left / 2))


def _ids(request: pb.ScoreRequest) -> list[str] | npt.NDArray[np.uint64]:
    """The candidates of all tasks, in order."""
    if any(task.document_numbers for task in request.tasks):
        return np.concatenate([np.array(task.document_numbers, dtype=np.uint64) for task in request.tasks])
    return list(chain.from_iterable(task.document_ids for task in request.tasks))


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
