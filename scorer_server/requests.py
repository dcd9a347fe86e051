"""Checks of requests against the contract and the limits. Every complaint names the field and what would do."""

from __future__ import annotations

from collections.abc import Sequence

from scorer_server.settings import Limits
from twinbert.bundle import Bundle
from twinbert.errors import CrossingMissingError, InvalidRequestError
from twinbert.text import is_blank
from twinbert.v1 import scorer_pb2 as pb

CROSSING_NUMBERS = {"cosine": pb.CROSSING_COSINE, "residual": pb.CROSSING_RESIDUAL}
_CROSSINGS: dict[int, str] = {number: name for name, number in CROSSING_NUMBERS.items()}


def crossing_name(crossing: int, bundle: Bundle) -> str:
    """Name of the crossing that a request asks for.

    Raises:
        CrossingMissingError: the bundle lacks it.
        InvalidRequestError: no such crossing.
    """
    if crossing == pb.CROSSING_UNSPECIFIED:
        return bundle.default_crossing
    if crossing not in _CROSSINGS:
        raise InvalidRequestError("crossing", f"{crossing} is no crossing that this version knows")
    name = _CROSSINGS[crossing]
    if name not in bundle.crossings:
        raise CrossingMissingError(f"the bundle has no {name} crossing; it has {', '.join(bundle.crossings)}")
    return name


def check_score(request: pb.ScoreRequest, limits: Limits) -> int:
    """Checks the tasks and candidates of a Score request; returns how many candidates there are.

    Raises:
        InvalidRequestError: see the message.
    """
    if not 1 <= len(request.tasks) <= limits.tasks:
        raise InvalidRequestError("tasks", f"there are {len(request.tasks)}; a request has 1 to {limits.tasks} tasks")
    candidates = 0
    for number, task in enumerate(request.tasks):
        strings, integers = len(task.document_ids), len(task.document_numbers)
        if strings and integers:
            raise InvalidRequestError(
                f"tasks[{number}]",
                "has document_ids and document_numbers; give those that the store's id type calls for",
            )
        if not strings and not integers:
            raise InvalidRequestError(f"tasks[{number}]", "has no candidates; give document_ids or document_numbers")
        candidates += strings + integers
        # A character has at most 4 bytes, so only longer ids need to be encoded to be measured.
        if strings and (max(map(len, task.document_ids)) > limits.id_bytes // 4 or not all(task.document_ids)):
            _check_ids(number, task.document_ids, limits)
    if candidates > limits.candidates:
        raise InvalidRequestError(
            "tasks",
            f"there are {candidates:,} candidates; a request has at most {limits.candidates:,} in all: split it",
        )
    if len({bool(task.document_numbers) for task in request.tasks}) > 1:
        raise InvalidRequestError("tasks", "some have document_ids, some document_numbers; a store has one id type")
    return candidates


def check_queries(queries: Sequence[str], field: str, limits: Limits) -> list[str]:
    """The queries of a request, none of them blank or too long.

    Raises:
        InvalidRequestError: see the message.
    """
    path = f"{field}[{{}}].query" if field == "tasks" else f"{field}[{{}}]"
    for number, query in enumerate(queries):
        if is_blank(query):
            raise InvalidRequestError(path.format(number), "is blank; there is nothing to encode")
        size = len(query.encode())
        if size > limits.query_bytes:
            raise InvalidRequestError(
                path.format(number), f"has {size:,} bytes; a query has at most {limits.query_bytes:,}"
            )
    return list(queries)


def check_retrieve(request: pb.RetrieveRequest, limits: Limits) -> int:
    """Checks a Retrieve request; returns how many hits it wants.

    Raises:
        InvalidRequestError: see the message.
    """
    if not 1 <= len(request.queries) <= limits.tasks:
        raise InvalidRequestError(
            "queries", f"there are {len(request.queries)}; a request has 1 to {limits.tasks} queries"
        )
    if request.limit > limits.hits:
        raise InvalidRequestError("limit", f"is {request.limit:,}; at most {limits.hits:,} hits are given")
    return request.limit or min(10, limits.hits)


def _check_ids(task: int, ids: Sequence[str], limits: Limits) -> None:
    for number, id_ in enumerate(ids):
        size = len(id_.encode())
        if not 1 <= size <= limits.id_bytes:
            raise InvalidRequestError(
                f"tasks[{task}].document_ids[{number}]", f"has {size} bytes; an id has 1 to {limits.id_bytes}"
            )
