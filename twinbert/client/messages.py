"""Requests and replies of the scorer as Python values: what the synchronous and the asyncio client share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from twinbert.errors import InvalidRequestError
from twinbert.v1 import scorer_pb2 as pb

CrossingName = Literal["cosine", "residual"]

# What is missing here, newer servers know.
_CROSSINGS = {pb.CROSSING_COSINE: "cosine", pb.CROSSING_RESIDUAL: "residual"}
_ID_TYPES = {pb.ID_TYPE_STRING: "string", pb.ID_TYPE_INTEGER: "integer"}


class Status(IntEnum):
    """What became of one candidate. A score is a number only where the status is OK."""

    UNSPECIFIED = 0
    OK = 1
    NOT_FOUND = 2
    NOT_SCORED = 3


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """One query and its candidates: all strings or all integers, as the store's ids are. An array will do."""

    query: str
    documents: Sequence[str] | Sequence[int] | npt.NDArray[Any]


@dataclass(frozen=True, eq=False, slots=True)
class TaskScores:
    """The answer to one task, parallel to its candidates, in their order.

    Attributes:
        scores: [N] float32, the crossing layer's probability in [0, 1]; NaN where the status is not OK.
        statuses: [N] uint8, values of `Status`.
    """

    scores: npt.NDArray[np.float32]
    statuses: npt.NDArray[np.uint8]

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """[N] bool: where there is a score. Index with it before sorting: NaN has no place in an order."""
        return np.equal(self.statuses, Status.OK)


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Where a request's time went at the server, in microseconds; stages may overlap. `cached_queries` is a count."""

    queue_us: int
    tokenize_us: int
    encode_us: int
    lookup_us: int
    cross_us: int
    total_us: int
    cached_queries: int


@dataclass(frozen=True, eq=False, slots=True)
class ScoreReply:
    """The answer to a Score call: one result a task, in order, all from one generation and model (64 hex digits)."""

    results: tuple[TaskScores, ...]
    generation: str
    model: str
    times: StageTimes


@dataclass(frozen=True, eq=False, slots=True)
class QueryHits:
    """The best documents for one query, best first: ids, and their scores as [N] float32 in [0, 1]."""

    documents: tuple[str | int, ...]
    scores: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class RetrieveReply:
    """The answer to a Retrieve call: one result a query, in order. `exact`: every row was compared."""

    results: tuple[QueryHits, ...]
    generation: str
    model: str
    times: StageTimes
    exact: bool


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation that the server holds, and the model that serves it. Times are milliseconds since the Unix epoch."""

    name: str
    documents: int
    encoding: str
    created_ms: int
    watermark_ms: int
    model: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A published generation that the server does not serve: its name, the metric's reason, and the reason in words."""

    name: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server accepts in one request, and in one field."""

    tasks: int
    candidates: int
    message_bytes: int
    id_bytes: int
    query_bytes: int
    hits: int


@dataclass(frozen=True, slots=True)
class Description:
    """What a server serves and accepts: `DescribeResponse`, with crossings and the id type by their short names."""

    current: Generation
    held: tuple[Generation, ...]
    model: str
    fingerprint: str
    crossings: tuple[str, ...]
    default_crossing: str
    calibrated: bool
    dimension: int
    id_type: str
    query_max_tokens: int
    limits: Limits
    server_version: str
    refused: Refusal | None


def score_request(
    tasks: Task | Iterable[Task], *, generation: str, crossing: CrossingName | None, allow_partial: bool
) -> pb.ScoreRequest:
    """The message for a Score call.

    Raises:
        InvalidRequestError: A value that the message cannot hold; what it can hold is for the server to judge.
    """
    if crossing is not None and crossing not in _CROSSINGS.values():
        raise InvalidRequestError("crossing", f"{crossing!r} is neither 'cosine' nor 'residual'")
    tasks = [tasks] if isinstance(tasks, Task) else tasks
    return pb.ScoreRequest(
        tasks=[_task(task, f"tasks[{position}]") for position, task in enumerate(tasks)],
        generation=generation,
        crossing=None if crossing is None else f"CROSSING_{crossing.upper()}",
        allow_partial=allow_partial,
    )


def score_reply(response: pb.ScoreResponse) -> ScoreReply:
    """The values of a ScoreResponse."""
    return ScoreReply(
        # np.array of a repeated field is one copy in C: 4 µs for 100 numbers, 5 µs for 10,000; from a list 8 and 500.
        tuple(
            TaskScores(np.array(result.scores, np.float32), np.array(result.statuses, np.uint8))
            for result in response.results
        ),
        response.generation,
        response.model,
        _times(response.times),
    )


def retrieve_request(queries: str | Iterable[str], limit: int, *, generation: str) -> pb.RetrieveRequest:
    """The message for a Retrieve call.

    Raises:
        InvalidRequestError: A value that the message cannot hold.
    """
    try:
        return pb.RetrieveRequest(
            queries=[queries] if isinstance(queries, str) else list(queries),
            limit=limit,
            exact=True,
            generation=generation,
        )
    except (TypeError, ValueError) as error:
        raise InvalidRequestError("queries", f"queries are strings and limit is an integer from 0: {error}") from error


def retrieve_reply(response: pb.RetrieveResponse) -> RetrieveReply:
    """The values of a RetrieveResponse."""
    return RetrieveReply(
        tuple(
            QueryHits(
                tuple(hit.document_id or hit.document_number for hit in result.hits),  # a string id is never empty
                np.array([hit.score for hit in result.hits], np.float32),
            )
            for result in response.results
        ),
        response.generation,
        response.model,
        _times(response.times),
        response.exact,
    )


def description(response: pb.DescribeResponse) -> Description:
    """The values of a DescribeResponse."""
    limits = response.limits
    return Description(
        current=_generation(response.current),
        held=tuple(_generation(generation) for generation in response.held),
        model=response.model,
        fingerprint=response.fingerprint,
        crossings=tuple(_CROSSINGS.get(crossing, str(crossing)) for crossing in response.crossings),
        default_crossing=_CROSSINGS.get(response.default_crossing, str(response.default_crossing)),
        calibrated=response.calibrated,
        dimension=response.dimension,
        id_type=_ID_TYPES.get(response.id_type, str(response.id_type)),
        query_max_tokens=response.query_max_tokens,
        limits=Limits(
            limits.tasks, limits.candidates, limits.message_bytes, limits.id_bytes, limits.query_bytes, limits.hits
        ),
        server_version=response.server_version,
        refused=_refusal(response.refused) if response.HasField("refused") else None,
    )


def _task(task: Task, field: str) -> pb.ScoreTask:
    documents: Any = task.documents.tolist() if isinstance(task.documents, np.ndarray) else task.documents
    try:
        if isinstance(documents, str):
            raise TypeError("documents is one string")  # noqa: TRY301 - it would be taken letter by letter
        if documents and isinstance(documents[0], str):
            return pb.ScoreTask(query=task.query, document_ids=documents)
        return pb.ScoreTask(query=task.query, document_numbers=documents)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            field, f"a query is a string, its candidates are all strings or all integers from 0 to 2^64 - 1: {error}"
        ) from error


def _times(times: pb.StageTimes) -> StageTimes:
    return StageTimes(
        times.queue_us,
        times.tokenize_us,
        times.encode_us,
        times.lookup_us,
        times.cross_us,
        times.total_us,
        times.cached_queries,
    )


def _generation(generation: pb.Generation) -> Generation:
    return Generation(
        generation.name,
        generation.documents,
        generation.encoding,
        generation.created_ms,
        generation.watermark_ms,
        generation.model,
    )


def _refusal(refusal: pb.Refusal) -> Refusal:
    return Refusal(refusal.name, refusal.reason, refusal.message)
